"""The command line as a whole: exit codes, messages, the files it leaves, and that these need no fastfold. Notebooks
can't show a process end"""
import json,os,re,shutil,subprocess,sys,warnings
from pathlib import Path
import cloudpickle, pandas as pd, pytest, torch
from torch import nn
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    from fastai.vision.all import (ConvLayer, CrossEntropyLossFlat, Datasets, Flatten, Hook, Learner, LinBnDrop,
        load_learner, set_seed)
from fastfold import __version__
from fastfold.cli import main

def run(*args, **kwargs):
    "Run Python in a process of its own"
    return subprocess.run([sys.executable, *args], text=True, capture_output=True, **kwargs)

def test_help(capsys):
    for args,shown in ((['--help'], 'demo'), (['demo','--help'], '--epochs'), (['zoo','--help'], '--peers'),
            (['fold','--help'], '--trust'), (['--version'], f'fastfold {__version__}')):
        with pytest.raises(SystemExit) as e: main(args)
        assert e.value.code==0 and shown in capsys.readouterr().out

@pytest.mark.parametrize('args', [['zoo','--help'], ['fold','--help'], ['fold','no.pkl']], ids=' '.join)
def test_help_is_light(args):
    "Neither help nor a mistyped name must wait for PyTorch"
    code = """import sys, fastfold.cli
try: fastfold.cli.main(sys.argv[1:])
finally: print(sorted({'torch','fastai'} & set(sys.modules)))"""
    assert run('-c', code, *args).stdout.endswith('[]\n')

def test_module(root):
    assert run('-m', 'fastfold.cli', '--version', cwd=root).stdout==f'fastfold {__version__}\n'

@pytest.mark.parametrize('args,says', [
    ([], 'required: command'), (['flod'], "invalid choice: 'flod'"), (['demo','--epochs','many'], 'invalid int'),
    (['demo','extra'], 'extra'), (['zoo','--fuzz'], 'expected one argument')])
def test_usage(args, says, capsys):
    with pytest.raises(SystemExit) as e: main(args)
    assert e.value.code==2 and says in capsys.readouterr().err

@pytest.mark.parametrize('args,says', [
    (['--epochs','0'], 'at least 1'), (['--bs','1'], 'at least 2'), (['--size','1'], 'size must be at least 2'),
    (['--arch','mobilenet_v2'], "`vision_learner` can't build a classifier from 'mobilenet_v2' (it has no pooling"),
    (['--arch','vgg11_bn','--size','16'], "'vgg11_bn' can't take pictures of 16 pixels"),
    (['--device','abacus'], "device 'abacus'"),
    (['--device','cuda:99'], "device 'cuda:99'"), (['--arch','resnet81'], "no architecture 'resnet81': try resnet")])
def test_options(args, says, small_demo, capsys, tmp_path):
    "What isn't possible is said in one line, before anything is done"
    assert main(['demo', *args])==2
    out,err = capsys.readouterr()
    assert says in err and err.count('\n')==1 and not out and not any(tmp_path.iterdir())

@pytest.mark.parametrize('args,loaded', [
    (['demo','--size','1'], []), (['demo','--out','file/below'], []), (['demo','--device','abacus'], ['torch']),
    (['demo','--arch','resnet81'], ['torch'])], ids=lambda o: ' '.join(o))
def test_refused_early(args, loaded, tmp_path, root):
    "A mistake doesn't wait for what isn't needed to see it, and what takes long is announced"
    (tmp_path/'file').touch()
    code = """import sys, fastfold.cli
try: code = fastfold.cli.main(sys.argv[1:])
finally: print(code, sorted({'torch','fastai'} & set(sys.modules)))"""
    res = run('-c', code, *args, cwd=tmp_path, env={**os.environ, 'PYTHONPATH':str(root)})
    assert res.stdout in (f'{c} {loaded}\n' for c in (1, 2))
    *before,last = res.stderr.splitlines()
    assert before==(['Loading PyTorch and fastai ...'] if loaded else []) and last.startswith('fastfold demo: ')
    assert [o.name for o in tmp_path.iterdir()]==['file']

def test_small_disk(small_demo, monkeypatch, capsys, tmp_path):
    "The weights of a network must fit on the disk, which is found out before training"
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda path: usage._replace(free=1_000_000))
    assert main(['demo'])==1
    out,err = capsys.readouterr()
    assert ': 1 MB are left and 49 MB are needed; make room, or' in err and err.count('\n')==1
    assert not out and not any(tmp_path.iterdir())

def test_unwritable(small_demo, tmp_path, capsys):
    (tmp_path/'file').touch()
    for out in 'file','file/below':
        assert main(['demo','--out',out])==1
        o,err = capsys.readouterr()
        assert "can't write to" in err and err.count('\n')==1 and not o

@pytest.mark.parametrize('error,code,says', [
    (OSError(28, 'No space left on device'), 1, 'No space left on device'),
    (RuntimeError('CUDA out of memory.\nTry less'), 1, 'CUDA out of memory.'),
    (KeyboardInterrupt(), 130, 'interrupted')])
def test_failure(error, code, says, small_demo, monkeypatch, capsys, tmp_path):
    def fail(*args): raise error
    monkeypatch.setattr('fastfold.lab.demo.pets_learner', fail)
    assert main(['demo'])==code
    err = capsys.readouterr().err
    assert err.startswith('fastfold demo: ') and says in err and err.count('\n')==1
    assert not any(tmp_path.iterdir()), 'an empty directory is left'

short = 'demo --epochs 1 --size 32 --bs 8 --device cpu --out o/p'.split()

full = OSError(28, 'No space left on device')

@pytest.mark.parametrize('where,left,error,code,says', [
    ('pathlib.Path.write_bytes', set(), full, 1, full.strerror),
    ('torch.save', {'report.html','report.png'}, full, 1, full.strerror),
    ('pathlib.Path.write_bytes', set(), KeyboardInterrupt(), 130, 'interrupted')], ids=['full','later','interrupted'])
def test_not_saved(where, left, error, code, says, small_demo, monkeypatch, capsys, tmp_path):
    "What can't be saved is on the screen already, and leaves no half of a file and no empty directory"
    write = Path.write_bytes
    def fail(what, *args, **kwargs):
        if isinstance(what, Path) and what.suffix!='.part': return write(what, *args, **kwargs)
        raise error
    monkeypatch.setattr(where, fail)
    assert main(short)==code
    out,err = capsys.readouterr()
    assert 'latency, batch of 1' in out and out.endswith('\n\n')
    assert err.startswith('fastfold demo: ') and says in err and err.count('\n')==1
    assert {o.name for o in tmp_path.rglob('*') if o.is_file()}==left and (tmp_path/'o').exists()==bool(left)

def test_half_download(small_demo, monkeypatch, tmp_path, capsys):
    "An interrupted download leaves nothing that looks like the start of one"
    part = tmp_path/'oxford-iiit-pet.tgz.part'
    def broken(url):
        part.touch()
        raise TimeoutError('timed out')
    monkeypatch.setattr(small_demo, 'untar_data', broken)
    monkeypatch.setattr(small_demo.URLs, 'path', lambda url: tmp_path/'oxford-iiit-pet.tgz')
    with small_demo.pets(download=True) as path: names = [o.name for o in (path/'images').iterdir()]
    assert not part.exists() and len(names)==24 and not path.exists()
    assert capsys.readouterr().out.splitlines()==['Downloading Oxford-IIIT Pets (about 812 MB)',
        "Couldn't download Oxford-IIIT Pets (timed out): using 24 drawn pictures"]

def test_empty_download(small_demo, monkeypatch, tmp_path):
    (tmp_path/'images').mkdir()
    monkeypatch.setattr(small_demo, 'untar_data', lambda url: tmp_path)
    with small_demo.pets(download=True) as path: assert path!=tmp_path

@pytest.fixture
def fastai_home(tmp_path, monkeypatch):
    "An empty place for what fastai downloads"
    from fastai.data.external import fastai_cfg
    monkeypatch.setenv('FASTAI_HOME', str(tmp_path))
    fastai_cfg.cache_clear()
    yield tmp_path
    fastai_cfg.cache_clear()

def test_local_pets(fastai_home):
    "Photographs are found where fastai puts them, and looking for them makes nothing"
    from fastfold.lab.pets import local_pets
    assert local_pets() is None and not any(fastai_home.iterdir())
    settings = '[DEFAULT]\ndata = data\narchive = archive\nstorage = tmp\nmodel = models\n'
    (fastai_home/'config.ini').write_text(settings)
    images = fastai_home/'data'/'oxford-iiit-pet'/'images'
    images.mkdir(parents=True)
    assert local_pets() is None
    (images/'Bengal_1.jpg').touch()
    assert local_pets()==images.parent

def test_drawn_alike(small_demo, tmp_path):
    "The same seed draws the same pictures, another one others"
    def drawn(name, seed):
        return {o.name: o.read_bytes() for o in (small_demo.draw_pets(tmp_path/name, seed=seed)/'images').iterdir()}
    a,b,c = drawn('a', 0),drawn('b', 0),drawn('c', 1)
    assert a==b and a.keys()==c.keys() and a!=c

load = '''
import sys, warnings
warnings.filterwarnings('ignore')
class NoFastfold:
    def find_spec(self, name, *args):
        if name.split('.')[0]=='fastfold': raise ImportError('there is no fastfold here')
sys.meta_path.insert(0, NoFastfold())
from fastai.vision.all import *
learn = load_learner(sys.argv[1])
with learn.no_bar(): print(learn.predict(PILImage.create(np.zeros((40,50,3), dtype=np.uint8)))[0])
'''

def test_demo(small_demo, tmp_path, capsys):
    assert main(short)==0
    out,err = capsys.readouterr()
    first,*_,last = out.splitlines()
    assert first=='Using 24 drawn pictures; `fastfold demo --pets` downloads photographs (about 812 MB)'
    assert '22 of 22 norms folded' in out and 'latency, batch of 1' in out and '\r' not in out and not err
    assert last.startswith('Open o/p/report.html in a browser. To use the network, load o/p/folded.pkl with')
    assert {o.name for o in (tmp_path/'o/p').iterdir()}=={'folded.pkl','report.html','report.png'}
    assert (tmp_path/'o/p/report.png').read_bytes().startswith(b'\x89PNG')
    res = run('-c', load, 'o/p/folded.pkl', cwd=tmp_path)
    assert res.stdout in ('cat\n','dog\n'), res.stderr

def test_demo_page(small_demo, tmp_path, capsys):
    "The page stands alone, shows pictures with a description each, and all predictions on the diagonal"
    assert main([*short, '--pets'])==0
    assert "Couldn't download Oxford-IIIT Pets (no network): using 24 drawn pictures" in capsys.readouterr().out
    page = (tmp_path/'o/p/report.html').read_text(encoding='utf-8')
    assert not re.search(r'<script|<link|(src|href)="(?!data:)|url\(', page)
    assert page.count('<img')==page.count(' alt="A ')==4 and 'class="changed"' not in page # 4 are for validation
    assert '<b>4 of 4</b> predictions are the same' in page and page.count('class="folded"')==22

@pytest.fixture
def zoo(monkeypatch, tmp_path):
    "The module, and a directory of its own to run the command in"
    from fastfold.lab import zoo
    monkeypatch.chdir(tmp_path)
    return zoo

def test_zoo(zoo, tmp_path, capsys):
    assert main('zoo resnet18 densenet121 tabular_learner --size 32 --out o/p'.split())==0
    out,err = capsys.readouterr()
    assert [o.split()[0] for o in out.splitlines()[:2]]==['resnet18','densenet121']
    assert '  20 norms,   0 left, error' in out
    assert ' kept: its input is also used by cat' in out and 'zoo.csv, zoo.png' in out and '\r' not in out and not err
    assert {o.name for o in (tmp_path/'o/p').iterdir()}=={'zoo.csv','zoo.png'}
    df = pd.read_csv(tmp_path/'o/p/zoo.csv')
    assert list(df.model)==['resnet18','densenet121','tabular_learner']
    assert list(df.left>0)==[False,True,False] and df.error.max()<1e-9
    assert (tmp_path/'o/p/zoo.png').read_bytes().startswith(b'\x89PNG')

@pytest.mark.parametrize('args,says', [
    (['resnet81'], "no architecture 'resnet81': try resnet"), (['none.json'], "can't read none.json"),
    (['bad.json'], 'bad.json is not JSON'), (['list.json'], 'list.json has to be of the form'),
    (['resnet18','--fuzz','3'], 'leave out the names'), (['--size','0'], 'size must be at least 1'),
    (['--fuzz','-1'], 'fuzz must be at least 0'), (['--ask'], 'give their number with --fuzz'),
    (['resnet18','--ask'], 'with --fuzz'), (['--fuzz','3','--ask','--merge'], 'leave out --merge, or --ask')])
def test_zoo_options(args, says, zoo, tmp_path, capsys):
    (tmp_path/'bad.json').write_text('{')
    (tmp_path/'list.json').write_text('["resnet18"]')
    assert main(['zoo', *args])==2
    out,err = capsys.readouterr()
    assert says in err and err.count('\n')==1 and not out and not (tmp_path/'fastfold-zoo').exists()

def test_zoo_peers(zoo, monkeypatch, capsys):
    "One that isn't installed is a line, and so is one that fails or is wrong"
    from fastfold.lab import trials
    def fails(model, *xb): raise TypeError('no\nway')
    def careless(model, *xb): return lambda x: model(x)+1
    monkeypatch.setattr(trials, 'TOOLS', dict(fastfold=trials.TOOLS['fastfold'], absent=(fails, 'no_such_module'),
        broken=(fails, 'torch'), careless=(careless, 'torch')))
    assert main('zoo resnet18 --size 32 --peers'.split())==0
    out = capsys.readouterr().out
    assert 'absent is not installed: pip install -e ".[peers]"\n' in out and out.count('absent')==1
    assert 'fails: TypeError: no\n' in out and 'WRONG' in out

def test_zoo_list(zoo, tmp_path, capsys):
    expected = dict(resnet18=dict(hw=[40,32], norms=20, left=0), densenet121=dict(hw=[32,32], left=0))
    (tmp_path/'a.json').write_text(json.dumps(expected))
    assert main(['zoo','a.json'])==1
    out,err = capsys.readouterr()
    assert ' 0 left (at most 0)' in out and ' left (MORE than 0)' in out
    assert err.startswith('fastfold zoo: densenet121 keeps ') and ' more than 0: report this' in err

def test_zoo_wrong(zoo, monkeypatch, capsys):
    "A wrong fold by fastfold is a failure"
    from fastfold.lab import trials
    monkeypatch.setitem(trials.TOOLS, 'fastfold', (lambda model, *xb: nn.Linear(3, 2).double(), 'fastfold'))
    assert main('zoo resnet18 --size 32'.split())==1
    assert 'resnet18 RuntimeError: ' in capsys.readouterr().err

def test_zoo_impossible(zoo, monkeypatch, tmp_path, capsys):
    "A network that can't be made is a line, and the next one has its turn"
    from fastfold.lab import models
    def broken(): raise ImportError('it needs more')
    monkeypatch.setattr(models, 'unet', broken)
    assert main('zoo unet_learner tabular_learner'.split())==0
    out = capsys.readouterr().out
    assert 'fails: ImportError: it needs more' in out and '3 norms,   0 left' in out
    assert main('zoo unet_learner --out p'.split())==1
    assert 'none of these networks' in capsys.readouterr().err and not (tmp_path/'p').exists()

@pytest.mark.parametrize('error,code', [(OSError(28, 'No space left on device'), 1), (KeyboardInterrupt(), 130)])
def test_zoo_no_halves(error, code, zoo, monkeypatch, tmp_path, capsys):
    "What can't be written whole leaves nothing"
    def half(self, data):
        self.touch()
        raise error
    monkeypatch.setattr(zoo.Path, 'write_bytes', half)
    assert main('zoo tabular_learner'.split())==code
    assert not any(tmp_path.iterdir())
    out,err = capsys.readouterr()
    assert 'tabular_learner' in out and err.startswith('fastfold zoo: ') and err.count('\n')==1

def test_zoo_merge(zoo, tmp_path, capsys):
    pytest.importorskip('timm')
    assert main('zoo repvgg_a0 resnet18 --size 32 --merge'.split())==0
    rows = capsys.readouterr().out.splitlines()
    assert '0 left, 22 sums merged, error' in rows[0] and 'merged' not in rows[1]

def test_zoo_fuzz(zoo, monkeypatch, tmp_path, capsys):
    from fastfold.lab import fuzz
    assert main('zoo --fuzz 3'.split())==0
    out = capsys.readouterr().out
    assert '3 networks, ' in out and ', 0 failures\n' in out and not any(tmp_path.iterdir())
    assert main('zoo --fuzz 3 --merge'.split())==0 and ', 0 failures\n' in capsys.readouterr().out
    def wrong(net, merge): raise AssertionError('it differs')
    monkeypatch.setattr(fuzz, 'check', wrong)
    assert main('zoo --fuzz 2 --seed 7'.split())==1
    out,err = capsys.readouterr()
    assert 'seed 7: AssertionError: it differs\nseed 8: ' in out
    assert err.startswith('fastfold zoo: 2 of 2 networks failed: run one alone ')

def test_zoo_fuzz_ask(zoo, monkeypatch, tmp_path, capsys):
    from fastfold.lab import asking, fuzz
    assert main('zoo --fuzz 3 --ask'.split())==0
    out = capsys.readouterr().out
    assert '3 networks, ' in out and ', 0 failures\n' in out and not any(tmp_path.iterdir())
    def wrong(net):
        assert isinstance(net, asking.AskingNet)
        raise AssertionError('it differs')
    monkeypatch.setattr(fuzz, 'check_asking', wrong)
    assert main('zoo --fuzz 2 --ask --seed 7'.split())==1
    out,err = capsys.readouterr()
    assert 'seed 7: AssertionError: it differs\nseed 8: ' in out
    assert err.startswith('fastfold zoo: 2 of 2 networks failed: run one alone ')

def picture(i): return torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(i))
def label(i): return i%2

def output_of(m, i, o): return o.detach()

def network(*layers):
    "A network whose norms have seen something"
    set_seed(42)
    model = nn.Sequential(ConvLayer(3,8), ConvLayer(8,8,stride=2), nn.AdaptiveAvgPool2d(2), Flatten(), *layers,
        LinBnDrop(32,2,p=.5))
    for _ in range(5): model(3*torch.randn(8,3,8,8)+1)
    return model

@pytest.fixture(scope='module')
def export(tmp_path_factory):
    "What `learn.export()` writes"
    path = tmp_path_factory.mktemp('export')
    dls = Datasets(range(32), [[picture],[label]]).dataloaders(bs=8, device='cpu', num_workers=0)
    this = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(this) # as in a notebook
    try: Learner(dls, network(), loss_func=CrossEntropyLossFlat(), path=path).export()
    finally: cloudpickle.unregister_pickle_by_value(this)
    return (path/'export.pkl').read_bytes()

@pytest.fixture
def d(export, tmp_path, monkeypatch):
    "A directory with an exported learner, to run the command in"
    monkeypatch.chdir(tmp_path)
    (tmp_path/'export.pkl').write_bytes(export)
    (tmp_path/'export.pkl').chmod(0o600)
    return tmp_path

def files(d): return {str(o.relative_to(d)): o.read_bytes() if o.is_file() else None for o in d.rglob('*')}
def warning(file): return f'loading {file} runs the code that is in it\n'

predict = load.partition('learn =')[0] + """
for o in sys.argv[1:]:
    learn = load_learner(o)
    with learn.no_bar(): torch.save(learn.get_preds(dl=learn.dls.test_dl(L(range(16)))), f'{o}.preds')
    print(learn.path, sum('BatchNorm' in type(m).__name__ for m in learn.model.modules()))
"""

def test_fold(d, export, capsys):
    assert main(['fold','export.pkl'])==0
    out,err = capsys.readouterr()
    assert out.startswith('3 of 3 norms folded, ') and out.endswith('\nIn export-folded.pkl\n')
    assert err==warning('export.pkl')
    now = files(d)
    assert sorted(now)==['export-folded.pkl','export.pkl']
    assert now['export.pkl']==export and len(now['export-folded.pkl'])<len(export)
    assert (d/'export-folded.pkl').stat().st_mode & 0o777==0o600
    both = 'export.pkl','export-folded.pkl'
    res = run('-c', predict, *both, cwd=d)
    assert not res.returncode, res.stderr
    (path,n),(path_folded,n_folded) = map(str.split, res.stdout.splitlines())
    assert path==path_folded and (n,n_folded)==('3','0')
    a,b = [torch.load(d/f'{o}.preds')[0] for o in both]
    assert a.shape==(16,2) and a.std(0).min()>1e-3 and torch.allclose(a, b, rtol=0, atol=1e-5)

def test_fold_process(d, root):
    "From the shell, with classes and functions of a notebook"
    env = {**os.environ, 'PYTHONPATH':str(root)}
    res = run('-m', 'fastfold.cli', 'fold', 'export.pkl', '-o', 'o.pkl', cwd=d, env=env)
    assert res.returncode==0 and res.stdout.endswith('In o.pkl\n') and 'o.pkl' in files(d)
    assert res.stderr==f'Loading PyTorch and fastai ...\n{warning("export.pkl")}'

def test_fold_model(d, capsys):
    model,x = network().eval(),torch.randn(4,3,8,8)
    torch.save(model, 'model.pth')
    (d/'model.pth').chmod(0o600)
    (d/'o').mkdir()
    assert main('fold model.pth -o o/small.pth'.split())==0
    folded = torch.load('o/small.pth', weights_only=False)
    assert not folded.training and not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in folded.modules())
    assert torch.allclose(model(x), folded(x), rtol=0, atol=1e-5)
    assert (d/'o/small.pth').stat().st_size<(d/'model.pth').stat().st_size

def test_fold_hooked(d):
    "What a hook stores while the model is folded, as those of a U-Net do, doesn't get into the file"
    model = network()
    model.stored = Hook(model[0][0], output_of)
    torch.save(model, 'model.pth')
    (d/'model.pth').chmod(0o600)
    assert main('fold model.pth -o o.pth'.split())==0
    folded = torch.load('o.pth', weights_only=False)
    assert folded.stored.stored is None and (d/'o.pth').stat().st_size<(d/'model.pth').stat().st_size
    x = torch.randn(4,3,8,8)
    assert folded.eval()(x).shape==(4,2) and folded.stored.stored.shape==(4,8,8,8)

@pytest.mark.parametrize('args,says', [
    (['no.pkl'], "can't read no.pkl: No such file"), (['folder'], 'folder is not a file'),
    (['export.pkl','-o','other.pkl'], 'other.pkl is there already: --force'),
    (['export.pkl','-o','export.pkl'], 'export.pkl is there already: --force'),
    (['export.pkl','-o','folder','--force'], 'folder is a directory'),
    (['shared.pkl'], 'others can write to shared.pkl: add --trust'),
    (['export.pkl','--device','abacus'], "device 'abacus' can't be used")])
def test_fold_refuses(args, says, d, capsys):
    (d/'folder').mkdir()
    (d/'other.pkl').touch()
    (d/'shared.pkl').touch()
    (d/'shared.pkl').chmod(0o620)
    before = files(d)
    assert main(['fold', *args])==2
    out,err = capsys.readouterr()
    assert says in err and err.startswith('fastfold fold: ') and err.count('\n')==1 and not out and files(d)==before

def test_fold_trust(d, monkeypatch, capsys):
    "A file of another user, and one where users aren't known"
    uid = os.stat('export.pkl').st_uid
    monkeypatch.setattr(os, 'getuid', lambda: uid+1)
    assert main(['fold','export.pkl'])==2
    monkeypatch.delattr(os, 'getuid')
    assert main(['fold','export.pkl'])==2
    out,err = capsys.readouterr()
    assert not out and 'belongs to another user: add --trust' in err and "it isn't known here who owns" in err
    assert err.count('\n')==2
    assert main(['fold','export.pkl','--trust'])==0
    assert capsys.readouterr().err==warning('export.pkl')

@pytest.mark.filterwarnings('ignore:load_learner')
def test_fold_force(d, capsys):
    "Onto another file, and onto itself"
    (d/'o.pkl').touch()
    assert main('fold export.pkl -o o.pkl --force'.split())==main('fold export.pkl -o export.pkl --force'.split())==0
    assert sorted(files(d))==['export.pkl','o.pkl']
    for o in 'export.pkl','o.pkl': assert not load_learner(o).fold().rows

@pytest.mark.filterwarnings('ignore::DeprecationWarning')
@pytest.mark.parametrize('name,says', [
    ('text', "it may be damaged or no pickle: give what"), ('empty', "can't be loaded"), ('half', "can't be loaded"),
    ('weights', 'holds no learner or model (OrderedDict): give what'),
    ('absent', "needs the module 'no_such', which can't be found: install it"),
    ('gone', "needs what can't be found here (Can't get attribute 'Opaque'"),
    ('scripted', 'is a scripted module'), ('opaque', 'no example batch could be inferred for Opaque')])
def test_fold_fails(name, says, d, export, capsys, monkeypatch):
    "The line says what is wrong with a file"
    module = type(sys)('no_such')
    monkeypatch.setitem(sys.modules, 'no_such', module)
    class Opaque(nn.Module):
        def __init__(self): super().__init__(); self.norm = nn.BatchNorm2d(3)
        def forward(self, a, b, c): return self.norm(a['x'][b])
    module.Opaque,Opaque.__module__,Opaque.__qualname__ = Opaque,'no_such','Opaque'
    if name=='text': (d/name).write_text('weights\nand biases\n')
    elif name=='empty': (d/name).touch()
    elif name=='half': (d/name).write_bytes(export[:len(export)//2])
    elif name=='weights': torch.save(network().state_dict(), name)
    elif name=='scripted': torch.jit.script(nn.Sequential(nn.Conv2d(3,3,1), nn.BatchNorm2d(3)).eval()).save(name)
    else: torch.save(Opaque(), name)
    if name=='absent': monkeypatch.delitem(sys.modules, 'no_such')
    if name=='gone': del module.Opaque
    (d/name).chmod(0o600)
    before = files(d)
    assert main(['fold', name])==1
    out,err = capsys.readouterr()
    assert err.startswith(f'{warning(name)}fastfold fold: ') and says in err and err.count('\n')==2
    assert not out and files(d)==before

@pytest.mark.parametrize('layers,says', [
    ([nn.Conv2d(3,4,1)], 'no norms to fold'),
    ([nn.Conv2d(3,4,1), nn.ReLU(), nn.BatchNorm2d(4)], '0 of 1 norm folded')])
def test_fold_nothing(layers, says, d, capsys):
    "No failure, but no file"
    torch.save(nn.Sequential(*layers), 'model.pth')
    (d/'model.pth').chmod(0o600)
    before = files(d)
    assert main(['fold','model.pth'])==0
    out = capsys.readouterr().out
    assert out.startswith(says) and out.endswith('\nNothing to fold, so model-folded.pkl is not written\n')
    assert files(d)==before

@pytest.mark.parametrize('owner,name', [(os,'replace'), (Path,'write_bytes'), (torch,'save')],
    ids=['replace','write','save'])
@pytest.mark.parametrize('error,code,says', [
    (OSError(28, 'No space left on device'), 1, 'No space left on device'), (KeyboardInterrupt(), 130, 'interrupted')],
    ids=['full','interrupted'])
def test_fold_no_halves(owner, name, error, code, says, d, monkeypatch, capsys):
    "What can't be written whole leaves nothing, and what was to be replaced as it was"
    (d/'o.pkl').write_text('old')
    before = files(d)
    def fail(what, *args, **kwargs):
        if name=='write_bytes': what.touch()
        raise error
    monkeypatch.setattr(owner, name, fail)
    assert main('fold export.pkl -o o.pkl --force'.split())==code
    err = capsys.readouterr().err
    assert f'fastfold fold: {"can" if code==1 and name!="save" else ""}' in err and says in err and err.count('\n')==2
    monkeypatch.undo()
    assert files(d)==before

def test_fold_no_folder(d, capsys):
    before = files(d)
    assert main('fold export.pkl -o no/o.pkl'.split())==1
    assert capsys.readouterr().err=="fastfold fold: can't write to no: No such file or directory\n" and files(d)==before
