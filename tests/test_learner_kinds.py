"""Every kind of learner that fastai makes: how many norms are left, and the reason of each. A sweep; the notebook has
the story. Norms are those of a trained model, with statistics and weights that would show a lost scale or shift"""
import gc, re, warnings
import numpy as np, pandas as pd, pytest, torch
from torch import nn
from torch.utils.data import DataLoader as TorchLoader, TensorDataset
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    from fastai.collab import CollabDataLoaders, collab_learner
    from fastai.tabular.all import Categorify, FillMissing, Normalize, TabularDataLoaders, tabular_learner
    from fastai.text.all import AWD_LSTM, awd_lstm_clas_config, text_classifier_learner
    from fastai.vision.all import (CrossEntropyLossFlat, DataLoaders, Datasets, Learner, Mish, NormType, load_learner,
        noop, resnet18, set_seed, unet_learner, vision_learner, xresnet18, xse_resnext18)
    from fastai.vision.gan import GANLearner, basic_critic, basic_generator
    from fastai.layers import ConvLayer, LinBnDrop
    from torchvision.models import mobilenet_v3_small
from fastfold.all import FoldCallback
from tiny_learner import bits, label, OwnFit, same, state
from random_nets import live

pytestmark = pytest.mark.filterwarnings('ignore')

@pytest.fixture(autouse=True)
def tidy():
    "A learner and its callbacks hold each other"
    yield
    gc.collect()

def items(tfms, n=8):
    "Training and validation set of a few made-up items; `tfms` make input and target from a number"
    return Datasets(range(n), [[f] for f in tfms], splits=(range(n//2), range(n//2, n)))

def rand(*shape): return lambda i: torch.randn(shape, generator=torch.Generator().manual_seed(i))
def mask(i): return torch.randint(0, 2, (32,32), generator=torch.Generator().manual_seed(i))

def pictures(y=label): return items([rand(3,32,32), y]).dataloaders(bs=2, device='cpu', num_workers=0)

def small(**kwargs):
    "An architecture of four norms, for what doesn't depend on it"
    body = [nn.Sequential(ConvLayer(i, o), ConvLayer(o, o, stride=2)) for i,o in ((3,8), (8,16))]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16,2))

def vision(arch=small, **kwargs):
    return lambda: vision_learner(pictures(), arch, pretrained=False, n_out=2, loss_func=CrossEntropyLossFlat(),
        normalize=False, **kwargs)

def unet(arch=small, **kwargs):
    return lambda: unet_learner(pictures(mask), arch, pretrained=False, n_out=2, loss_func=CrossEntropyLossFlat(axis=1),
        normalize=False, **kwargs)

def frame(n=64):
    rng = np.random.default_rng(0)
    return pd.DataFrame(dict(a=rng.choice(['x','y','z'], n), b=rng.integers(0, 4, n), c=rng.normal(size=n),
        d=rng.normal(3, 2, n), y=rng.integers(0, 2, n).astype(str)))

def tabular(cats=('a','b'), conts=('c','d'), y='y', **kwargs):
    def dls():
        return TabularDataLoaders.from_df(frame(), procs=[Categorify, FillMissing, Normalize], cat_names=list(cats),
            cont_names=list(conts), y_names=y, valid_idx=range(48,64), bs=16, device='cpu')
    return lambda: tabular_learner(dls(), layers=[20,10], **kwargs)

def collab(**kwargs):
    rng = np.random.default_rng(0)
    df = pd.DataFrame(dict(user=rng.integers(0, 9, 64), item=rng.integers(0, 7, 64), rating=rng.random(64)*5))
    return lambda: collab_learner(CollabDataLoaders.from_df(df, bs=16, device='cpu'), y_range=(0,5.5), **kwargs)

def text():
    def tokens(i): return torch.randint(0, 20, (12,), generator=torch.Generator().manual_seed(i))
    dls = items([tokens, label]).dataloaders(bs=2, device='cpu', num_workers=0)
    dls.vocab = [f'w{i}' for i in range(20)]
    loss = CrossEntropyLossFlat()
    small = awd_lstm_clas_config | dict(emb_sz=16, n_hid=24)
    return text_classifier_learner(dls, AWD_LSTM, n_out=2, pretrained=False, loss_func=loss, seq_len=6, config=small)

def plain(arch, **kwargs):
    return lambda: Learner(pictures(), arch(n_out=2, **kwargs), loss_func=CrossEntropyLossFlat())

alone = 'the example batch never runs it'
# a U-Net keeps what it concatenates later
hooked = "its input can't change: a hook on '.*' sees it, and its output goes into relu in '.*'"
between = "its input is made by relu in '.*', and its output goes into relu in '.*'"
kinds = { # what makes it, number of norms, reasons of those left
    'vision': (vision(resnet18), 22, []), 'vision-mobilenet': (vision(mobilenet_v3_small), 36, []),
    'vision-xresnet': (vision(xresnet18), 24, []), 'vision-timm': (vision('mobilenetv3_small_050'), 36, []),
    'vision-timm-never-run': (vision('mobilenetv4_conv_small'), 48, [alone]),
    'vision-timm-no-norms': (vision('convnext_atto'), 2, []),
    'head': (vision(), 6, []), 'head-pool': (vision(concat_pool=False), 6, []),
    'head-lin_ftrs': (vision(lin_ftrs=[64,32]), 7, []), 'head-first_bn': (vision(first_bn=False), 5, []),
    'head-bn_final': (vision(bn_final=True), 7, []), 'head-lin_first': (vision(lin_first=True), 5, []),
    'head-ps': (vision(ps=0.), 6, []), 'head-none': (vision(lin_ftrs=[]), 5, []),
    'head-y_range': (vision(y_range=(0,1)), 6, []),
    'head-custom': (vision(custom_head=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), LinBnDrop(16, 2))), 5, []),
    'unet': (unet(resnet18), 25, [between]+[hooked]*4), 'unet-small': (unet(), 6, [between,hooked]),
    'unet-attention': (unet(self_attention=True), 6, [between,hooked]),
    'unet-batch': (unet(norm_type=NormType.Batch), 15, [between,hooked]),
    'unet-weight': (unet(norm_type=NormType.Weight), 6, [between,hooked]),
    'unet-blur': (unet(blur=True), 6, [between,hooked]),
    'tabular': (tabular(), 3, []), 'tabular-lin_first': (tabular(config=dict(lin_first=False)), 3, []),
    'tabular-bn_final': (tabular(config=dict(bn_final=True)), 4, []),
    'tabular-use_bn': (tabular(config=dict(use_bn=False)), 1, []),
    'tabular-ps': (tabular(config=dict(ps=.1, embed_p=.1)), 3, []),
    'tabular-bn_cont': (tabular(config=dict(bn_cont=False)), 2, []),
    'tabular-y_range': (tabular(y='c', conts=['d'], y_range=(0,5), n_out=1), 3, []),
    'tabular-conts': (tabular(cats=[]), 3, []), 'tabular-cats': (tabular(conts=[]), 3, [alone]),
    'collab': (collab(), 0, []), 'collab-nn': (collab(use_nn=True, layers=[20]), 2, [alone]),
    'text': (text, 2, []),
    'xresnet': (plain(xresnet18, sa=True, act_cls=Mish), 22, []), 'xresnet-xse': (plain(xse_resnext18), 22, [])}

@pytest.mark.parametrize('name', kinds)
def test_kind(name):
    make,n,left = kinds[name]
    set_seed(0)
    learn = make()
    learn.logger = noop
    with learn.no_bar():
        learn.fit(1, cbs=FoldCallback())
        assert len(learn.fold_report.folded)==n-len(left) and len(learn.fold_report.rows)==n
        live(learn.unfold().model, torch.float32)
        trained = bits(dict(learn.model.state_dict()))
        want = learn.get_preds()[0]
        report = learn.fold()
        assert len(report.rows)==n and len(report.kept)==len(left)
        for o,reason in zip(report.kept, left): assert re.fullmatch(reason, o.reason)
        torch.testing.assert_close(learn.get_preds()[0], want, rtol=1e-3, atol=1e-4*want.abs().max().item())
        assert bits(dict(learn.unfold().model.state_dict()))==trained

def gan():
    dls = items([rand(10), rand(3,16,16)]).dataloaders(bs=2, device='cpu', num_workers=0)
    generator,critic = basic_generator(16, 3, in_sz=10, n_features=8),basic_critic(16, 3, n_features=8)
    learn = GANLearner.wgan(dls, generator, critic, switch_eval=False)
    learn.logger = noop
    return learn

def test_gan():
    "Generator and critic: the one that isn't in use at the end of the training is followed alone"
    set_seed(0)
    learn = gan()
    with learn.no_bar(): learn.fit(2, cbs=FoldCallback())
    assert len(learn.fold_report.folded)==len(learn.fold_report.rows)==3 and learn.is_folded
    z,x = rand(4,10)(0),rand(4,3,16,16)(0)
    trained = live(learn.unfold().model, torch.float32)
    def both(): return [trained.generator(z), trained.critic(x)]
    with torch.no_grad():
        want = both()
        learn.fold()
        for a,b in zip(both(), want): torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)

# The whole life of a learner of each kind, in fastai's own order of callbacks
class OwnFiles(Learner):
    "Writes and reads files of its own"
    def save(self, file, **kwargs): torch.save(self.model.state_dict(), self.path/file)
    def load(self, file, **kwargs):
        self.model.load_state_dict(torch.load(self.path/file))
        return self

def of_class(cls): return lambda: cls(pictures(), small(), loss_func=CrossEntropyLossFlat())

def torch_loaders():
    xs,ys = torch.stack([rand(3,32,32)(i) for i in range(8)]),torch.tensor([label(i) for i in range(8)])
    data = TensorDataset(xs, ys)
    dls = DataLoaders(TorchLoader(data, batch_size=2, shuffle=True), TorchLoader(data, batch_size=2), device='cpu')
    return Learner(dls, small(), loss_func=CrossEntropyLossFlat())

lives = {'vision': vision(), 'unet': unet(), 'tabular': tabular(), 'collab': collab(use_nn=True, layers=[20]),
    'text': text, 'gan': gan, 'torch': torch_loaders, 'own-fit': of_class(OwnFit), 'own-files': of_class(OwnFiles)}

# fastai itself can't: it wants the state of every parameter, and loaders that make new ones
not_exported = 'gan','torch'

def live_through(make, folds, path, exports):
    "All that is left by a life with a `FoldCallback`, or without, and by what it exported"
    set_seed(0)
    learn = make()
    learn.path,learn.logger = path,noop
    if folds: learn.add_cb(FoldCallback())
    def fold():
        if not folds: return
        learn.fold()
        assert learn.is_folded
    with learn.no_bar():
        learn.fit(1)
        fold()
        learn.save('a.pth')
        learn.fit(1)
        fold()
        learn.load('a.pth')
        learn.fit(1)
        fold()
        if exports: learn.export('learner.pkl')
        fold()
    end = state(learn)
    if not exports: return end,None
    exported = load_learner(path/'learner.pkl').model.eval()
    x = next(iter(learn.dls.valid))[:learn.dls.n_inp if hasattr(learn.dls, 'n_inp') else 1]
    with torch.no_grad(): out = exported(*x)
    return end,out[0] if isinstance(out, tuple) else out # a text classifier returns its activations, too

@pytest.mark.parametrize('name', lives)
def test_life(name, tmp_path):
    "Trained, saved, loaded, exported and unfolded: as without fastfold, bit for bit"
    ends = [live_through(lives[name], folds, tmp_path, name not in not_exported) for folds in (False,True)]
    (end,out),(end_,out_) = ends
    same(end, end_)
    if out is not None: torch.testing.assert_close(out_, out, rtol=1e-4, atol=1e-4)
