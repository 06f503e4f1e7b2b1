"""What the notebooks can't show of folding an input normalization: each kind of first layer, each padding, and each
network in which it must stay as it is. PyTorch itself is the judge, in float64, at the borders too"""
from itertools import product
import gc, io, subprocess, sys, warnings
import pytest, torch
from torch import nn
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    from fastai.vision.all import (ConvLayer, CrossEntropyLossFlat, Datasets, Flatten, IntToFloatTensor, Learner,
        LinBnDrop, Normalize, Pipeline, RandomErasing, TensorImage, TensorMask, accuracy, imagenet_stats, load_learner,
        noop, resnet18, set_seed, tensor, unet_learner, vision_learner)
    from fastai.callback.progress import ProgressCallback
from fastfold.all import fold_normalize, FoldCallback, FoldError
from random_nets import batch, difference, live

pytestmark = pytest.mark.filterwarnings('ignore:load_learner', 'ignore::FutureWarning', 'ignore::DeprecationWarning')

def stats(n): return batch(n, seed=1)*3, batch(n, seed=2).abs()+.1

# fold_normalize

paddings = [dict(padding=0), dict(padding=2), dict(padding='same')]
modes = ['zeros', 'reflect', 'replicate', 'circular']
@pytest.mark.parametrize('n', [1, 2, 3])
@pytest.mark.parametrize('groups', [1, 2])
def test_convolutions(n, groups):
    "of 1 to 3 axes, whatever they pad, with and without bias; always plain modules"
    x,(mean,std) = batch(2, 4, *(7,)*n),stats(4)
    m,s = (t.view(-1, *(1,)*n) for t in (mean, std))
    for padding,mode,dilation,bias in product(paddings, modes, (1, 2), (True, False)):
        torch.manual_seed(0)
        options = dict(groups=groups, padding_mode=mode, dilation=dilation, bias=bias, **padding)
        conv = getattr(nn, f'Conv{n}d')(4, 6, 3, **options).double()
        want = conv((x-m)/s)
        for pad in None,'mean':
            new = fold_normalize(conv, mean, std, pad=pad)
            assert difference([want], [new(x)])<1e-12
            assert all(type(o).__module__.startswith('torch.nn') for o in new.modules())
            assert isinstance(new, nn.Sequential)==(mode=='zeros' and padding['padding']!=0)

@pytest.mark.parametrize('n', [1, 2, 3])
@pytest.mark.parametrize('groups', [1, 2])
@pytest.mark.parametrize('bias', [True, False])
def test_transposed_convolutions(n, groups, bias):
    "an output pixel sees a number of input pixels that depends on where it is"
    x,(mean,std) = batch(2, 4, *(5,)*n),stats(4)
    m,s = (t.view(-1, *(1,)*n) for t in (mean, std))
    options = dict(stride=2, padding=1, output_padding=1, groups=groups, bias=bias)
    conv = getattr(nn, f'ConvTranspose{n}d')(4, 6, 3, **options).double()
    for pad in None,'mean': assert difference([conv((x-m)/s)], [fold_normalize(conv, mean, std, pad=pad)(x)])<1e-12

@pytest.mark.parametrize('channels', [1, 3, 5, 12])
def test_channels(channels):
    "any number of them; statistics in any shape, or one value for all; one picture without a batch"
    conv,x = nn.Conv2d(channels, 4, 3, padding=1).double(),batch(2, channels, 6, 6)
    mean,std = stats(channels)
    for pad in None,'mean':
        want = conv((x - mean[:,None,None])/std[:,None,None])
        for shape in (-1,), (1,-1,1,1):
            assert difference([want], [fold_normalize(conv, mean.view(shape), std.view(shape), pad=pad)(x)])<1e-12
        assert difference([want[0]], [fold_normalize(conv, mean.tolist(), std.tolist(), pad=pad)(x[0])])<1e-12
        assert difference([conv((x-.5)/.2)], [fold_normalize(conv, .5, .2, pad=pad)(x)])<1e-12

def test_linear():
    lin,x,(mean,std) = nn.Linear(5, 3, bias=False).double(),batch(2, 7, 5),stats(5)
    assert difference([lin((x-mean)/std)], [fold_normalize(lin, mean, std)(x)])<1e-12

@pytest.mark.parametrize('pad', [None, 'mean'])
def test_layer_is_kept_as_it_was(pad):
    "the original, its flags and dtype; no random number is drawn; what comes out can be saved and trained"
    conv = nn.Conv2d(3, 4, 3, padding=1, dtype=torch.float16).eval()
    conv.bias.requires_grad_(False)
    before,rng = conv.weight.clone(),torch.get_rng_state()
    new = fold_normalize(conv, [.4, .5, .6], .25, pad=pad)
    assert torch.equal(conv.weight, before) and torch.equal(rng, torch.get_rng_state())
    assert {p.dtype for p in new.parameters()}=={torch.float16} and not any(m.training for m in new.modules())
    assert new[-1].weight.requires_grad and not new[-1].bias.requires_grad
    data = io.BytesIO()
    torch.save(new, data)
    assert b'fastfold' not in data.getvalue()

def test_computed_weight():
    "a hook would put the old weight back at the next call"
    with pytest.warns(FutureWarning): conv = nn.utils.weight_norm(nn.Conv2d(3, 4, 3))
    with pytest.raises(FoldError, match='remove_weight_norm'): fold_normalize(conv, 0, 2)

@pytest.mark.parametrize('mean,std', [(float('nan'), 1), (0, float('inf')), ([0, 0], 1), (0, [1, -1, 1])])
def test_statistics_that_make_no_sense(mean, std):
    with pytest.raises(FoldError, match='give'): fold_normalize(nn.Conv2d(3, 4, 3), mean, std)

# learners

def picture(i):
    drawn = torch.Generator().manual_seed(i)
    return TensorImage(torch.randint(256, (3,16,16), generator=drawn, dtype=torch.uint8))
def label(i): return i%2
def both(i): return picture(i),picture(i+100)

class Two(nn.Module):
    "Two pictures, one convolution for both"
    def __init__(self):
        super().__init__()
        self.body,self.head = nn.Sequential(ConvLayer(3,4), nn.AdaptiveAvgPool2d(1), Flatten()),nn.Linear(8,2)
    def forward(self, a, b): return self.head(torch.cat([self.body(a), self.body(b)], 1))

def padded():
    return nn.Sequential(ConvLayer(3,8), ConvLayer(8,8,stride=2), nn.AdaptiveAvgPool2d(1), Flatten(),
        LinBnDrop(8,2,p=.5))
def patches(): return nn.Sequential(nn.Conv2d(3,8,4,stride=4), nn.ReLU(), *padded()[1:])

def data(*more, x=picture, y=label, n_inp=None):
    tfms = [IntToFloatTensor(), Normalize.from_stats(*imagenet_stats, cuda=False), *more]
    xs = [[x]] if callable(x) else [[o] for o in x]
    dsets = Datasets(range(24), [*xs, [y]], splits=(list(range(16)), list(range(16,24))), n_inp=n_inp)
    return dsets.dataloaders(bs=8, device='cpu', num_workers=0, after_batch=tfms)

def learner(path, model=padded, *cbs, dls=None):
    set_seed(42)
    dls = dls or data()
    learn = Learner(dls, model(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=path, cbs=list(cbs))
    learn.logger = noop
    return learn.remove_cbs([ProgressCallback])

def normalize(dl): return dl.after_batch.fs[-1]
def values(learn): return [t.clone() for dl in learn.dls.loaders for t in (normalize(dl).mean, normalize(dl).std)]
def same(a, b): return len(a)==len(b) and all(map(torch.equal, a, b))
def parts(learn): return {r.name.split('.')[-1]:r for r in learn.fold_report.rows if r.kind=='Normalize'}

def seen(learn, loaders):
    "Predictions for all loaders, and the pictures that are shown: decoded from each loader, and by `predict`"
    preds = [learn.get_preds(dl=dl)[0] for dl in [*loaders, learn.dls.test_dl(range(5))]]
    shown = [dl.decode(dl.one_batch())[0] for dl in [learn.dls.valid, *loaders[1:]]]
    shown.append(learn.predict(3, with_input=True)[0])
    return preds + [learn.predict(3)[2], tensor(learn.validate())],[o.float() for o in shown]

@pytest.mark.parametrize('model,takes_mean', [(padded, False), (patches, True)])
def test_all_loaders_agree(model, takes_mean, tmp_path):
    "also those that were made before, and pictures look as they did, to one of 256 grey levels"
    learn = learner(tmp_path, model)
    learn.fit(1)
    loaders,before = [learn.dls.valid, learn.dls.test_dl(range(3))],values(learn)
    preds,shown = seen(learn, loaders)
    learn.fold(normalize=True)
    assert {k:bool(r.into) for k,r in parts(learn).items()}==dict(mean=takes_mean, std=True)
    assert (normalize(loaders[1]).std==1).all() and (normalize(learn.dls.train).mean==0).all()==takes_mean
    new_preds,new_shown = seen(learn, loaders)
    for a,b in zip(preds, new_preds): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    for a,b in zip(shown, new_shown): assert (a-b).abs().max()<=1
    learn.show_results(show=False)
    learn.unfold()
    assert same(values(learn), before)
    assert same(seen(learn, loaders)[0], preds)

def state(learn):
    learn.unfold()
    return [*learn.model.state_dict().values(), *values(learn), torch.get_rng_state()]

trainings = dict(callback=lambda l: l.fit(1), by_hand=lambda l: (l.fit(1), l.fold(normalize=True)),
    twice=lambda l: (l.fit(1), l.fold(), l.fold(normalize=True)),
    lr_find=lambda l: (l.fit(1), l.fold(normalize=True), l.lr_find(num_it=4, show_plot=False)),
    nothing=lambda l: (l.fit(1), l.fold(normalize=True), l.fit(0)),
    refresh=lambda l: (l.fit(1), l.fold(normalize=True, refresh_bn=2)),
    load=lambda l: (l.fit(1), l.fold(normalize=True), l.save('m'), l.load('m')),
    opt=lambda l: (l.fit(1), l.fold(normalize=True), l.freeze(), l.unfreeze()))

@pytest.mark.parametrize('name', trainings)
def test_trains_on_as_without(name, tmp_path):
    "whatever happened to the folded learner; which stays folded through that, model and data"
    ends = []
    for fold in True,False:
        learn = learner(tmp_path, padded, *[FoldCallback(normalize=True)]*(fold and name=='callback'))
        if fold:
            trainings[name](learn)
            assert learn.is_folded and parts(learn)['std'].into and (normalize(learn.dls.valid).std==1).all()
        else:
            learn.fit(1)
            if name=='lr_find': learn.lr_find(num_it=4, show_plot=False)
            if name=='opt': learn.unfreeze()
        learn.fit(1)
        ends.append(state(learn))
    assert same(*ends)

def test_fold_that_fails(tmp_path):
    "leaves the data as they were too"
    learn = learner(tmp_path)
    last = [m for m in learn.model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))][-1]
    last.weight.data.fill_(float('nan')) # what the model returns says nothing, then
    before = values(learn),list(learn.model.parameters())
    with pytest.raises(FoldError): learn.fold(normalize=True)
    assert same(values(learn), before[0]) and not learn.is_folded
    assert all(a is b for a,b in zip(learn.model.parameters(), before[1]))

def test_taken_back_by_links(tmp_path):
    """The first layer takes in the normalization, then a norm: what it was follows the model to another dtype, and what
    was frozen stays so"""
    learn = learner(tmp_path)
    trained = {n:p for n,p in learn.model.named_parameters()}
    learn.fold(normalize=True)
    assert len(learn.fold_report.folded)==4
    learn.model.half()
    for p in learn.model.parameters(): p.requires_grad_(False)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        learn.unfold()
    assert {n:p for n,p in learn.model.named_parameters()}==trained
    assert not any(p.requires_grad or p.dtype!=torch.float16 for p in learn.model.parameters())

def test_export_and_load(tmp_path):
    "the exported learner has it all, and nothing of fastfold; one exported before can be folded without data"
    learn = learner(tmp_path, patches)
    learn.fit(1)
    learn.export('plain.pkl')
    preds = learn.predict(3)[2]
    learn.fold(normalize=True)
    learn.export()
    assert learn.is_folded and (normalize(learn.dls.train).std==1).all()
    code = f"""
import sys, warnings
sys.modules['fastfold'] = None
warnings.simplefilter('ignore')
from fastai.vision.all import *
def picture(i):
    drawn = torch.Generator().manual_seed(i)
    return TensorImage(torch.randint(256, (3,16,16), generator=drawn, dtype=torch.uint8))
def label(i): return i%2
sys.modules['test_normalize'] = sys.modules['__main__']
learn = load_learner('export.pkl')
with learn.no_bar(): assert torch.allclose(learn.predict(3)[2], torch.tensor({preds.tolist()}), atol=1e-5)
assert (learn.dls.valid.after_batch.fs[-1].std==1).all()
assert not any('BatchNorm2d' in type(m).__name__ for m in learn.model.modules())
"""
    res = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert not res.returncode, res.stderr
    loaded = load_learner(tmp_path/'plain.pkl').remove_cbs([ProgressCallback])
    loaded.fold(normalize=True)
    assert all(r.into for r in parts(loaded).values()) and len(parts(loaded))==2
    torch.testing.assert_close(loaded.predict(3)[2], preds, rtol=1e-4, atol=1e-5)

def test_data_of_two_learners(tmp_path):
    "the second gets what it was made for, and the first has lost nothing but its fold"
    dls = data()
    one,two = learner(tmp_path, dls=dls),learner(tmp_path, patches, dls=dls)
    preds = one.get_preds()[0],two.get_preds()[0]
    uses = (lambda: two.get_preds()[0], lambda: two.fit(1), lambda: two.show_results(show=False),
        lambda: two.fold(normalize=True), lambda: two.predict(1))
    for use in uses:
        one.fold(normalize=True)
        with pytest.warns(UserWarning, match='two learners'): res = use()
        assert not one.is_folded
        two.unfold()
        torch.testing.assert_close(one.get_preds()[0], preds[0], rtol=1e-4, atol=1e-5)
        if isinstance(res, torch.Tensor): assert torch.equal(res, preds[1])

def test_learner_that_is_gone(tmp_path):
    "its data are for others to use, at once or when Python gets to it"
    dls = data()
    before = values(learner(tmp_path, dls=dls))
    learner(tmp_path, dls=dls).fold(normalize=True)
    gc.collect()
    assert same(values(learner(tmp_path, dls=dls)), before)

@pytest.mark.parametrize('loader', ['other data', 'torch'])
def test_other_loaders(loader, tmp_path):
    "give the model what it was trained on"
    learn,other = learner(tmp_path),data().valid
    if loader=='torch':
        items = [(x.as_subclass(torch.Tensor), y) for x,y in zip(*other.one_batch())]
        other = torch.utils.data.DataLoader(items, batch_size=4)
    want = learn.get_preds(dl=other)[0]
    learn.fold(normalize=True)
    with pytest.warns(UserWarning, match='test_dl'): got = learn.get_preds(dl=other)[0]
    assert torch.equal(want, got) and not learn.is_folded

def test_data_that_are_replaced(tmp_path):
    learn = learner(tmp_path)
    want = learn.get_preds()[0]
    learn.fold(normalize=True)
    learn.dls = data()
    with pytest.warns(UserWarning, match='test_dl'): assert torch.equal(learn.get_preds()[0], want)
    learn.fold(normalize=True)
    torch.testing.assert_close(learn.get_preds()[0], want, rtol=1e-4, atol=1e-5)

def test_wrapped_model(tmp_path):
    "as an interrupted training on several devices leaves it"
    learn = learner(tmp_path)
    want = learn.get_preds()[0]
    learn.model = nn.DataParallel(learn.model)
    learn.fold(normalize=True)
    assert learn.is_folded and parts(learn)['std'].into==['0.0']
    torch.testing.assert_close(learn.get_preds()[0], want, rtol=1e-4, atol=1e-5)
    assert torch.equal(learn.unfold().get_preds()[0], want)

def test_choice_of_layers(tmp_path):
    "which of them takes the input may depend on it"
    class Either(nn.Module):
        def __init__(self):
            super().__init__()
            self.stems = nn.ModuleList([nn.Conv2d(3,4,3) for _ in range(2)])
            self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(4,2))
        def forward(self, x): return self.head(self.stems[len(x)>4](x))
    learn = learner(tmp_path, Either)
    want = learn.get_preds()[0]
    learn.fold(normalize=True)
    assert set(parts(learn)['std'].into)=={'stems.0','stems.1'} # both take it
    torch.testing.assert_close(learn.get_preds()[0], want, rtol=1e-4, atol=1e-5)

def test_two_pictures(tmp_path):
    "both are normalized, and go into the same convolution"
    learn = learner(tmp_path, Two, dls=data(x=(picture, lambda i: picture(i+100)), n_inp=2))
    want = learn.get_preds()[0]
    learn.fold(normalize=True)
    assert parts(learn)['std'].into==['body.0.0'] and parts(learn)['mean'].reason
    torch.testing.assert_close(learn.get_preds()[0], want, rtol=1e-4, atol=1e-5)

@pytest.mark.parametrize('kind', ['vision', 'unet', 'unet without last_cross'])
def test_fastai_models(kind, tmp_path):
    "a unet adds its input to the last block, unless told otherwise"
    unet = 'unet' in kind
    def mask(i): return TensorMask(torch.randint(2, (16,16), generator=torch.Generator().manual_seed(i)))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        make,more = (unet_learner,dict(last_cross=kind=='unet')) if unet else (vision_learner,{})
        learn = make(data(y=mask if unet else label), resnet18, n_out=2, pretrained=False, path=tmp_path,
            loss_func=CrossEntropyLossFlat(axis=1 if unet else -1), **more)
    learn.remove_cbs([ProgressCallback])
    live(learn.model, torch.float32)
    want = learn.get_preds()[0]
    learn.fold(normalize=True)
    std = parts(learn)['std']
    assert 'add' in std.reason if kind=='unet' else len(std.into)==1, str(learn.fold_report)
    torch.testing.assert_close(learn.get_preds()[0], want, rtol=1e-3, atol=1e-3)

class Own(Normalize): "May do anything"
bad = dict( # words of the reason, and the data
    late=('comes after it', lambda: data(RandomErasing())), targets=('acts on the targets', lambda: data(y=picture)),
    none=('acts on no input', lambda: data(x=lambda i: torch.rand(3,16,16))),
    own=('`Own`', lambda: change(data(), lambda n: Own(n.mean, n.std))),
    pixels=('statistics are of shape',
        lambda: change(data(), lambda n: Normalize(torch.arange(768.).view(1,3,16,16), n.std))),
    zero=('not above zero', lambda: change(data(), lambda n: Normalize(n.mean, n.std*0))),
    idle=('subtracts 0', lambda: change(data(), lambda n: Normalize(n.mean*0, n.std/n.std))),
    twice=('has 2 of them', lambda: data(Normalize.from_stats(*imagenet_stats, cuda=False))),
    training=('`split_idx`', lambda: change(data(), in_training)),
    lists=('no tensors', lambda: change(data(), lambda n: Normalize(.5, .5))),
    different=('different ones', lambda: change(data(), lambda n: Normalize(n.mean, n.std*2), slice(1))))
def in_training(n):
    n = Normalize(n.mean, n.std)
    n.split_idx = 0
    return n
def change(dls, f, which=slice(2)):
    for dl in dls.loaders[which]: dl.after_batch = Pipeline([*dl.after_batch.fs[:-1], f(normalize(dl))])
    return dls

class Named(nn.Module):
    def __init__(self): super().__init__(); self.model = padded()
    def forward(self, x, names): return self.model(x)
def test_inputs_that_are_no_tensors(tmp_path):
    learn = learner(tmp_path, Named, dls=data(x=(picture, lambda i: str(i)), n_inp=2))
    want = learn.get_preds()[0]
    learn.fold(normalize=True)
    assert parts(learn)['std'].into==['model.0.0']
    torch.testing.assert_close(learn.get_preds()[0], want, rtol=1e-4, atol=1e-5)

class Pair(Two):
    def forward(self, ab): return super().forward(*ab)
def test_pictures_in_one_input(tmp_path):
    learn = learner(tmp_path, Pair, dls=data(x=both))
    learn.fold(normalize=True)
    first,*norms = learn.fold_report.rows
    assert 'one input of the model' in first.reason and norms and all(r.into for r in norms), str(learn.fold_report)

@pytest.mark.parametrize('name', bad)
def test_normalize_that_stays(name, tmp_path):
    "with a reason; the network is folded nonetheless, and the data are as they were"
    why,make = bad[name]
    learn = learner(tmp_path, dls=make())
    before,xb = values(learn) if name not in ('late','lists','twice') else [],torch.rand(2,3,16,16)
    learn.fold(*[xb]*(name=='zero'), normalize=True)
    first,*norms = learn.fold_report.rows
    assert first.kind=='Normalize' and why in first.reason and first.todo, str(learn.fold_report)
    assert all(r.into for r in norms), str(learn.fold_report)
    assert same(before, values(learn) if before else [])

def test_no_normalize(tmp_path):
    dls = data()
    for dl in dls.loaders: dl.after_batch = Pipeline(dl.after_batch.fs[:-1])
    learn = learner(tmp_path, dls=dls)
    report = learn.fold(normalize=True)
    assert 'Normalize' not in [o.kind for o in report.rows] and not report.kept and learn.is_folded

networks = dict( # what looks at the normalized input in another way
    skip=lambda s,x: s.head(s.conv(x)) + x.mean((1,2,3))[:,None], relu=lambda s,x: s.head(s.conv(x.relu())),
    norm=lambda s,x: s.head(s.conv((x - x.mean((2,3), keepdim=True)).relu())),
    returned=lambda s,x: (s.head(s.conv(x)), x)[0]*x.abs().max())
class Net(nn.Module):
    def __init__(self, f):
        super().__init__()
        self.f,self.conv = f,ConvLayer(3,4)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), Flatten(), nn.Linear(4,2))
    def forward(self, x): return self.f(self, x)
@pytest.mark.parametrize('name', networks)
def test_networks_that_need_it(name, tmp_path):
    learn = learner(tmp_path, lambda: Net(networks[name]))
    want,before = learn.get_preds()[0],values(learn)
    learn.fold(normalize=True)
    assert [r.into for r in learn.fold_report.rows]==[[], [], ['conv.0']] and same(values(learn), before)
    torch.testing.assert_close(learn.get_preds()[0], want, rtol=1e-4, atol=1e-5)

def test_exact(tmp_path):
    "in float64, with statistics that do something, at the borders too"
    for model in padded,patches:
        learn = learner(tmp_path, model)
        live(learn.model)
        x = batch(2,3,16,16)
        with torch.no_grad():
            want = learn.model(x)
            learn.fold(x, normalize=True)
            assert learn.fold_report.max_err<1e-12
            m,s = (t.double() for t in imagenet_tensors())
            raw = x*s + (m if model is patches else 0) # what the loaders give now
            assert difference([want], [learn.model(raw)])<1e-9
def imagenet_tensors(): return [tensor(o).view(1,3,1,1) for o in imagenet_stats]
