"""fastfold on a device that isn't the CPU, where there is no GPU: second_device.py makes one of CPU memory, which is as
strict about tensors of two devices as CUDA is. What is folded there, and why the rest isn't, must be what it is on the
CPU, and nothing may be left behind there. It says nothing about speed or rounding, and none of its outputs is kept"""
import importlib.util, json, os, shutil, sysconfig, warnings, zlib
from copy import deepcopy
from functools import partial
from pathlib import Path
import pytest, torch, torchvision
from torch import nn, Tensor
from torch.utils._pytree import tree_leaves, tree_map
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    from fastai.vision.all import imagenet_stats, load_learner, Normalize, TensorImage
from fastfold.all import FoldCallback
from fastfold.core.refusals import FoldError
from fastfold.folder import BN_Folder
from fastfold.lab.bench import benchmark
from input_nets import In
from operation_nets import fill, NETS
from random_nets import batch, live
from tiny_learner import learner, picture, same, state

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning', 'ignore:.*GradScaler',
    'ignore:.*appears to be a view operator', 'ignore:load_learner')

def why_not():
    "Say what is missing to build the device, '' if nothing is"
    if os.name=='nt': return 'the device is not built on Windows'
    if not shutil.which(os.environ.get('CXX', 'c++')): return 'there is no C++ compiler'
    if not shutil.which('ninja'): return 'there is no ninja'
    if not (Path(sysconfig.get_path('include'))/'Python.h').exists(): return 'there is no Python.h'
    return ''

@pytest.fixture(scope='module', autouse=True)
def gpu(tmp_path_factory):
    "The device, built once, and there for these tests only"
    if why := why_not(): pytest.skip(why)
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv('TORCH_EXTENSIONS_DIR', str(tmp_path_factory.mktemp('extensions')))
        try: import second_device # noqa: F401
        except (RuntimeError, OSError) as e: pytest.skip(f"it can't be built with torch {torch.__version__}: {e}")
        yield torch.device('gpu:0')
        torch.gpu.is_available = lambda: False # else DataParallel uses it in other tests

def copied(model):
    "A copy of a model on the device. `to` cuts the ties of parameters where PyTorch doesn't know the device"
    def there(t):
        on_gpu = t.detach().to('gpu')
        return nn.Parameter(on_gpu, t.requires_grad) if isinstance(t, nn.Parameter) else on_gpu
    return deepcopy(model, {id(t): there(t) for t in [*model.parameters(), *model.buffers()]})

def to_gpu(o): return tree_map(lambda t: t.to('gpu') if isinstance(t, Tensor) else t, o)

def places(o):
    "The devices of all tensors in a module or an output"
    if isinstance(o, nn.Module): o = [*o.parameters(), *o.buffers()]
    return {t.device.type for t in tree_leaves(o) if isinstance(t, Tensor)}

def outputs(model, args, kw=None):
    with torch.no_grad(): res = model(*deepcopy(args), **deepcopy(kw or {}))
    return [t for t in tree_leaves(res) if isinstance(t, Tensor)]

def error(a, b):
    "The largest relative difference between two lists of tensors, wherever they are"
    assert [(s.shape, s.dtype) for s in a]==[(t.shape, t.dtype) for t in b]
    def plain(t): return t.cpu().double().nan_to_num(0, 0, 0)
    pairs = [(plain(s), plain(t)) for s,t in zip(a, b) if s.numel()]
    return max((((s-t).abs().max()/s.abs().max().clamp(min=1e-12)).item() for s,t in pairs), default=0.)

# the device itself

def test_it_is_strict():
    "Or none of the tests below proves anything"
    layer,x = nn.Linear(3, 4).to('gpu'),torch.randn(2, 3)
    assert places(layer(x.to('gpu')))=={'gpu'}
    mistakes = [lambda: layer(x), lambda: x + x.to('gpu'), lambda: torch.cat([x, x.to('gpu')]),
        lambda: nn.Conv1d(2, 2, 1).to('gpu')(x[None]),
        lambda: torch.rand(2, device='gpu', generator=torch.Generator())]
    for wrong in mistakes:
        with pytest.raises(RuntimeError): wrong()
    assert places([x.to('gpu')*torch.tensor(2.), x.to('gpu')[torch.arange(2)]])=={'gpu'} # CUDA takes these, too
    copied = deepcopy(dict(all=x.to('gpu'), part=layer.weight))
    assert places(copied)=={'gpu'} and torch.equal(copied['all'].cpu(), x)

# folds

def runs(model, args, kw):
    "Does the model take these on the device? Some make tensors of their own on the CPU"
    try: outputs(model, args, kw)
    except Exception: return False
    return True

@pytest.mark.parametrize('net', NETS[::9], ids=[o.name for o in NETS[::9]])
def test_net(net):
    "Networks of all kinds: the report is the same as on the CPU, and so are the outputs"
    torch.manual_seed(zlib.crc32(net.make.__name__.encode()))
    model = net.make() if net.raw else fill(net.make().double().eval())
    example,*others = [deepcopy(o if isinstance(o, In) else In(o)) for o in (net.example, *net.others)]
    moved = copied(model)
    args,kw = to_gpu((example.args, example.kw))
    if not runs(deepcopy(moved), args, kw): pytest.skip('the network itself takes the CPU for granted')
    def fold(model, i):
        folder = BN_Folder(verify=zlib.crc32(net.name.encode())%2==0, **net.opts)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            try: return folder.fold(model, *i.args, kw=i.kw), folder.report
            except FoldError as e: return None, type(e)
    want,said = fold(deepcopy(model), deepcopy(example))
    folded,report = fold(moved, In(args, kw))
    if want is None: return
    assert folded is not None and report==said, f'{report}\n\n{said}'
    assert places(folded)<={'gpu'}
    for i in (example, *others):
        args,kw = to_gpu((i.args, i.kw))
        if not runs(deepcopy(moved), args, kw): continue
        out = outputs(deepcopy(folded), args, kw)
        assert places(out)<={'gpu'}
        assert error(outputs(deepcopy(moved), args, kw), out)<net.tol, str(report)

@pytest.mark.parametrize('name,options', [('resnet18', {}), ('densenet121', {}), ('shufflenet_v2_x0_5', {}),
    ('mobilenet_v3_small', dict(verify=False)), ('googlenet', dict(verify=False)), ('regnet_y_400mf', dict(merge=True)),
    ('convnext_tiny', dict(affine=True, verify=False)), ('mnasnet0_5', dict(merge=True, affine=True, verify=False))])
def test_torchvision(name, options):
    torch.manual_seed(0)
    more = dict(aux_logits=False, init_weights=False) if name=='googlenet' else {}
    model = live(getattr(torchvision.models, name)(**more)).to('gpu')
    folder = BN_Folder(**options)
    folded = folder.fold(model, batch(2, 3, 64, 64).to('gpu'))
    assert folder.report.folded or name=='convnext_tiny'
    for x in (batch(1, 3, 64, 64, seed=1), batch(3, 3, 96, 64, seed=2)):
        want,out = outputs(model, [x.to('gpu')]),outputs(folded, [x.to('gpu')])
        assert places([folded(x.to('gpu')), *out])=={'gpu'} and error(want, out)<1e-9
    assert places(folded)=={'gpu'}

def small(**kwargs): return live(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3),
    nn.BatchNorm2d(8)), **kwargs)

@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision(dtype):
    "As close to float64 as the original in half precision is, but for the rounding of other numbers"
    exact,x = small(),batch(4, 3, 16, 16)
    half = deepcopy(exact).to('gpu', dtype)
    folder = BN_Folder()
    folded = folder.fold(half, x.to('gpu', dtype))
    assert len(folder.report.folded)==2
    assert {(p.dtype, p.device.type) for p in folded.parameters()}=={(dtype, 'gpu')}
    want = exact(x)
    before,after = (m(x.to('gpu', dtype)).cpu().double() for m in (half, folded))
    assert error([want], [after]) < 2*error([want], [before])

def test_autocast():
    "The weights are folded as exactly as without it"
    model,x = small(dtype=torch.float32).to('gpu'),batch(4, 3, 16, 16).to('gpu', torch.float32)
    plain,folder = BN_Folder().fold(model, x),BN_Folder()
    with torch.autocast('gpu', torch.bfloat16):
        folded = folder.fold(model, x)
        before,after = model(x),folded(x)
    assert len(folder.report.folded)==2 and before.dtype==after.dtype==torch.bfloat16
    assert all(torch.equal(a.cpu(), b.cpu()) for a,b in zip(plain.parameters(), folded.parameters()))
    assert error([before], [after])<2e-2

class TwoDevices(nn.Module):
    "A layer and a norm on either device; values are moved in between, and `move` says how"
    def __init__(self, move, *order):
        super().__init__()
        self.move = move
        self.first,self.second = (o.double().eval() for o in order)
    def forward(self, x): return self.second(self.move(self.first(x)))

moves = dict(to=lambda x: x.to('gpu'), gpu=lambda x: x.gpu(),
    copied=lambda x: torch.zeros_like(x, device='gpu').copy_(x))

@pytest.mark.parametrize('how', moves)
@pytest.mark.parametrize('pair', ['inside', 'back', 'ahead'])
def test_two_devices(pair, how):
    "A norm folds into a layer of its own device; across devices it is exact, or kept with a reason"
    conv,norm = nn.Conv2d(3, 8, 3),live(nn.BatchNorm2d(8))
    order = dict(inside=(small(), nn.Sequential(nn.Conv2d(8, 8, 3), live(nn.BatchNorm2d(8)))), back=(conv, norm),
        ahead=(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), norm), nn.Conv2d(8, 8, 3)))[pair]
    model,x = TwoDevices(moves[how], *order),batch(2, 3, 12, 12)
    model.second.to('gpu')
    for verify in (True, False):
        folder = BN_Folder(verify=verify)
        folded = folder.fold(model, x)
        assert [p.device for p in folded.first.parameters()]==[x.device for _ in folded.first.parameters()]
        assert places(folded.second)<={'gpu'}
        for o in (x, batch(1, 3, 14, 12, seed=1)): assert error(outputs(model, [o]), outputs(folded, [o]))<1e-9
        if pair=='inside': assert len(folder.report.folded)==3
        assert all(r.reason for r in folder.report.kept)

def test_mixed_by_mistake():
    "A model that can't run is refused, with what PyTorch says, and stays as it is"
    model,x = small().to('gpu'),batch(2, 3, 12, 12)
    with pytest.raises(FoldError, match='(?s)Sequential failed on the example batch of .*Give one example batch'):
        BN_Folder().fold(model, x)
    model[1].cpu()
    with pytest.raises(FoldError, match='(?s)Sequential failed on the example batch of .*same device'):
        BN_Folder().fold(model, x.to('gpu'))
    with pytest.raises(FoldError, match="'model' is on gpu:0 but the example is on cpu"):
        benchmark(dict(model=model.to('gpu')), x)

# learners

@pytest.fixture
def on_gpu(tmp_path, gpu): return partial(learner, tmp_path, device=gpu)

def test_life_of_a_learner(on_gpu):
    "Trained, folded by the callback, validated, unfolded, trained on, saved and loaded: the same bits as without it"
    states = []
    for cbs in ([], [FoldCallback()]):
        learn = on_gpu(*cbs)
        learn.fit_one_cycle(2)
        assert learn.is_folded==bool(cbs) and places(learn.model)=={'gpu'}
        scores,(preds,_) = learn.validate(),learn.get_preds()
        trained = state(learn)
        learn.save('saved')
        learn.fit(1)
        assert learn.is_folded==bool(cbs)
        trained_on = state(learn)
        learn.load('saved')
        assert places(learn.model)=={'gpu'}
        states.append([trained, trained_on, state(learn)])
        if not cbs: want,want_preds = scores,preds
    for a,b in zip(*states): same(a, b)
    assert list(scores)==pytest.approx(list(want), rel=1e-5)
    assert error([want_preds], [preds])<1e-5

@pytest.mark.parametrize('cpu', [True, False])
def test_exported(cpu, on_gpu, gpu, tmp_path, monkeypatch):
    "A file that was written on the device can be used on either"
    monkeypatch.setattr('fastai.learner.default_device', lambda: gpu) # as it is where there is CUDA
    learn = on_gpu()
    learn.fit(1)
    want = learn.get_preds()[0]
    learn.fold()
    learn.export('folded.pkl')
    loaded = load_learner(tmp_path/'folded.pkl', cpu=cpu)
    device = 'cpu' if cpu else 'gpu'
    assert places(loaded.model)=={device}
    x = learn.dls.valid.one_batch()[0].to(device)
    assert error([want[:len(x)]], [loaded.model.eval()(x).softmax(1)])<1e-5
    assert not loaded.fold(x).rows # there is nothing left to fold

@pytest.mark.parametrize('options', [dict(refresh_bn=2), dict(merge=True), dict(affine=True), dict(unshare=True)],
    ids=lambda o: next(iter(o)))
def test_options(options, on_gpu):
    learn = on_gpu()
    learn.fit(1)
    report = learn.fold(**options)
    assert len(report.folded)==4 and places(learn.model)=={'gpu'}
    learn.get_preds()
    learn.unfold()
    assert places(learn.model)=={'gpu'}

def test_normalize(on_gpu):
    "The `Normalize` of the data lives on the device, too"
    learn = on_gpu(picture=lambda i: TensorImage(picture(i)))
    norm = Normalize.from_stats(*imagenet_stats, cuda=False)
    norm.mean,norm.std = norm.mean.to('gpu'),norm.std.to('gpu')
    learn.dls.add_tfms([norm], 'after_batch')
    learn.fit(1)
    want = learn.get_preds()[0]
    report = learn.fold(normalize=True)
    assert places(learn.model)=={'gpu'} and len(report.folded)==5, str(report)
    assert error([want], [learn.get_preds()[0]])<1e-4
    learn.unfold()
    assert error([want], [learn.get_preds()[0]])<1e-6

def test_fold_bench(on_gpu):
    learn = on_gpu()
    learn.fit(1)
    res = learn.fold_bench(batch_sizes=(2,), rounds=1, min_time=0.)
    assert res.setting.startswith('gpu') and all(o.ms>0 for o in res.rows)

def test_demo(gpu, small_demo, capsys):
    "The command as a user gives it; what it writes loads on the CPU"
    from fastfold.cli import main
    assert main('demo --epochs 1 --size 32 --bs 8 --device gpu:0 --out out'.split())==0
    out,err = capsys.readouterr()
    assert '22 of 22 norms folded' in out and 'gpu:0' in out and not err
    assert places(load_learner('out/folded.pkl', cpu=True).model)=={'cpu'}

# results that a GPU is to record

@pytest.fixture(scope='session')
def recorder(root):
    "tools/record_gpu.py"
    spec = importlib.util.spec_from_file_location('record_gpu', root/'tools/record_gpu.py')
    res = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(res)
    return res

# what the cells for a GPU build on, small
before = {'tutorial.pets': '''
from fastai.vision.all import *
from fastfold.all import *
from fastcore.test import *
full = benchmark
def benchmark(models, xb, batch_sizes=(1,64), rounds=25): return full(models, xb, (1,2), 1, 0.)
from fastfold.lab.pets import draw_pets, cat_or_dog
path = draw_pets(Path.cwd()/'pets', n=24)
dls = ImageDataLoaders.from_name_func(path, get_image_files(path/'images').sorted(), cat_or_dog, item_tfms=Resize(64),
    bs=8, num_workers=0, device='cpu')
learn = vision_learner(dls, resnet18, pretrained=False, metrics=accuracy)
def scores(): return dict(zip(('loss','accuracy'), learn.validate()))
original = deepcopy(learn.model).eval()
learn.fold()
folded_model = deepcopy(learn.model).eval()
pictures = dls.valid.one_batch()[0].as_subclass(Tensor)
''', 'benchmarks': '''
networks = {'resnet18': (models.resnet18, 32)}
MODES = ['eager', 'channels_last', 'autocast']
full = benchmark
def benchmark(models, x, batch_sizes, rounds, min_time, mode): return full(models, x, (1,2), 1, 0., mode)

'''}

def shortened(nb, name, is_recorded):
    "A page whose cells for a GPU are the same, behind cells that take less time"
    code = [c for c in nb['cells'] if c['cell_type']=='code']
    first = dict(cell_type='code', id='before', metadata={}, source=before[name], outputs=[], execution_count=None)
    wanted = [{**c, 'outputs':[]} for c in code if is_recorded(c)]
    defined = [c for c in code if ''.join(c['source']).startswith(('import ', 'def ', 'torch.set_num_threads'))]
    return dict(nb, cells=[*(defined if name=='benchmarks' else []), first, *wanted])

@pytest.mark.parametrize('name', before)
def test_pages(name, recorder, root, gpu, tmp_path, capsys):
    "Every cell for a GPU on the pages runs, and is recorded"
    def is_recorded(c): return 'cuda' in recorder.flags(c)
    nb = shortened(json.loads((root/f'nbs/guide/{name}.ipynb').read_text(encoding='utf-8')), name, is_recorded)
    path,out = tmp_path/f'{name}.ipynb',tmp_path/'out'
    path.write_text(json.dumps(nb), encoding='utf-8')
    out.mkdir()
    assert recorder.main([str(path), '--device', 'gpu', '--out', str(out)])==0, capsys.readouterr().err
    cells = [c for c in json.loads((out/path.name).read_text(encoding='utf-8'))['cells'] if is_recorded(c)]
    assert cells and all(c['outputs'] for c in cells)
    assert 'gpu' in str(cells[0]['outputs'])
    assert json.loads(path.read_text(encoding='utf-8'))==nb

def test_nothing_is_kept(recorder, root, capsys):
    "Outputs of this device never go into the project's notebooks"
    page = root/'nbs/guide/benchmarks.ipynb'
    held = page.read_bytes()
    for args in ([], ['--out', str(page.parent)], ['--out', str(root/'nbs')]):
        with pytest.raises(SystemExit): recorder.main([str(page), '--device', 'gpu', *args])
        assert 'needs --out' in capsys.readouterr().err
    assert page.read_bytes()==held
