"""What the notebook can't teach about checkpoints, exports and saved weights: what is in the files, and who can load
them"""
import subprocess, sys, warnings
from pathlib import Path
import pytest, torch
from torch import nn
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    from fastai.vision.all import (Adam, CSVLogger, OptimWrapper, SaveModelCallback, load_learner, set_seed)
from fastai.vision.models.unet import DynamicUnet
from fastfold.all import BN_Folder, FoldCallback, FoldError
from tiny_learner import bits, learner, network, picture, same
from random_nets import live

pytestmark = pytest.mark.filterwarnings('ignore:load_learner', 'ignore::FutureWarning', 'ignore::DeprecationWarning')

def keys(file):
    "Names of the weights in a checkpoint"
    res = torch.load(file, weights_only=False)
    return list(res.get('model', res))

@pytest.mark.parametrize('with_opt', [False,True])
@pytest.mark.parametrize('saved_folded,loaded_folded', [(False,True), (True,False), (True,True)])
def test_checkpoints_never_mix(saved_folded, loaded_folded, with_opt, tmp_path):
    "Whatever is folded, the file has the trained weights, and the learner that loads it trains on alike"
    plain,learn,other = (learner(tmp_path) for _ in range(3))
    for o in plain,learn:
        set_seed(1)
        o.fit(1)
    other.create_opt()
    if saved_folded: learn.fold()
    file = learn.save('m', with_opt=with_opt)
    assert learn.is_folded==saved_folded and keys(file)==list(plain.model.state_dict())
    if loaded_folded: other.fold()
    other.load('m', with_opt=with_opt)
    assert other.is_folded==loaded_folded
    assert torch.allclose(other.get_preds()[0], plain.get_preds()[0], atol=1e-5)
    assert bits(dict(other.unfold().model.state_dict()))==bits(dict(plain.model.state_dict()))
    if with_opt: assert bits(other.opt.state_dict())==bits(plain.opt.state_dict())

def test_load_that_fails(tmp_path):
    "leaves the learner folded, with the weights that it had"
    learn = learner(tmp_path, FoldCallback())
    learn.fit(1)
    preds = learn.get_preds()[0]
    with pytest.raises(FileNotFoundError): learn.load('none')
    assert learn.is_folded and torch.equal(learn.get_preds()[0], preds)

def test_loaded_before_there_is_an_optimizer(tmp_path):
    learn,other = learner(tmp_path, FoldCallback()),learner(tmp_path)
    learn.fit(1)
    learn.save('m')
    other.fold()
    other.load('m')
    assert other.is_folded and torch.allclose(other.get_preds()[0], learn.get_preds()[0], atol=1e-5)
    same(*[bits(dict(o.unfold().model.state_dict())) for o in (learn, other)])

@pytest.mark.parametrize('kwargs', [{}, dict(every_epoch=True), dict(at_end=True), dict(with_opt=True)], ids=str)
def test_permanent_save_model(kwargs, tmp_path):
    "its checkpoints are those of the trained model, whatever validates in between"
    learn = learner(tmp_path, FoldCallback(), SaveModelCallback(**kwargs), CSVLogger())
    learn.fit(1)
    trained = learn.unfold().model.state_dict()
    want = bits(dict(trained))
    learn.fold()
    learn.validate()
    learn.tta(n=1)
    learn.get_preds()
    assert learn.is_folded
    for o in (tmp_path/'models').glob('*.pth'):
        saved = torch.load(o, weights_only=False)
        assert bits(dict(saved['model'] if 'opt' in saved else saved))==want

fresh = '''
import sys, warnings
class Blocked:
    def find_spec(self, name, *args):
        if name.split('.')[0]=='fastfold': raise ImportError('blocked')
sys.meta_path.insert(0, Blocked())
warnings.simplefilter('ignore')
def picture(i): pass
def label(i): pass
sys.modules['tiny_learner'] = sys.modules['__main__']
from fastai.basics import *
learn = load_learner('export.pkl')
o = torch.load('expected.pth')
with torch.no_grad(): assert torch.allclose(learn.model.eval()(o['x']).softmax(1), o['preds'], atol=1e-6)
assert not any('BatchNorm' in type(m).__name__ for m in learn.model.modules())
'''

def test_export_loads_without_fastfold(tmp_path):
    learn = learner(tmp_path, FoldCallback())
    learn.fit(1)
    opt,cbs,preds,dls = learn.opt,list(learn.cbs),learn.get_preds()[0],learn.dls
    learn.export()
    assert learn.opt is opt and list(learn.cbs)==cbs and learn.is_folded
    assert learn.dls is dls and len(learn.dls.train_ds)==32
    assert [o.name for o in tmp_path.glob('*.p*')]==['export.pkl']
    x = torch.stack([picture(i) for i in range(32,48)])
    torch.save(dict(x=x, preds=preds), tmp_path/'expected.pth')
    res = subprocess.run([sys.executable, '-c', fresh], cwd=tmp_path, capture_output=True, text=True)
    assert not res.returncode, res.stderr

def test_failed_export_changes_nothing(tmp_path, monkeypatch):
    learn = learner(tmp_path, FoldCallback())
    learn.fit(1)
    learn.export()
    before = (tmp_path/'export.pkl').read_bytes()
    def full(*args, **kwargs):
        Path(args[1]).write_bytes(b'half')
        raise OSError('No space left on device')
    monkeypatch.setattr(torch, 'save', full)
    opt = learn.opt
    with pytest.raises(OSError): learn.export()
    assert [o.name for o in tmp_path.glob('*.p*')]==['export.pkl'] and (tmp_path/'export.pkl').read_bytes()==before
    assert learn.opt is opt and learn.is_folded and len(learn.dls.train_ds)==32

def test_export_with_a_built_optimizer(tmp_path):
    "It has the trained parameters in it: none of them gets into the file, and it keeps its state"
    learn = learner(tmp_path, FoldCallback())
    learn.opt_func = OptimWrapper(opt=torch.optim.Adam(learn.model.parameters()))
    learn.fit(1)
    moments = len(learn.opt.opt.state)
    learn.export('built.pkl')
    assert len(learn.opt.opt.state)==moments>0 and learn.opt is learn.opt_func
    learn.opt_func = Adam
    learn.export('plain.pkl')
    assert abs((tmp_path/'built.pkl').stat().st_size - (tmp_path/'plain.pkl').stat().st_size)<200

def unet():
    return nn.Sequential(DynamicUnet(nn.Sequential(*network()[:2]), 2, (8,8)), nn.AdaptiveAvgPool2d(1), nn.Flatten())

@pytest.mark.parametrize('make', [network, unet], ids=['plain','unet'])
def test_export_is_no_larger_than_folded_model(make, tmp_path):
    "Neither what was replaced, nor what hooks have seen, gets into the file"
    model = make()
    with torch.no_grad(): model.eval()(torch.randn(2,3,8,8))
    learn = learner(tmp_path, FoldCallback(), model=model)
    learn.export('before.pkl')
    learn.fit(1)
    learn.export('after.pkl')
    sizes = [(tmp_path/o).stat().st_size for o in ('before.pkl','after.pkl')]
    numbers = sum(t.numel()*t.element_size() for t in learn.unfold().model.state_dict().values()) - sum(
        t.numel()*t.element_size() for t in (learn.fold() and learn.model).state_dict().values())
    assert learn.fold_report.folded and sizes[1]<=sizes[0]-numbers
    hooks = [h.__self__ for m in learn.model.modules() for h in m._forward_hooks.values()]
    assert all(o.stored is not None for o in hooks)

def test_loaded_learner_folds_without_data(tmp_path):
    learner(tmp_path).export()
    learn = load_learner(tmp_path/'export.pkl')
    with pytest.raises(FoldError, match='no training data'): learn.fold(refresh_bn=2)
    assert len(learn.fold().folded)==4

class Net(nn.Module):
    "Kinds of norm that leave something behind, are used twice, or find no home"
    def __init__(self):
        super().__init__()
        from timm.layers import BatchNormAct2d
        self.a,self.act = nn.Conv2d(3,4,3,bias=False),BatchNormAct2d(4, act_layer=nn.PReLU)
        self.b,self.bn = nn.Conv2d(4,4,1),nn.BatchNorm2d(4)
        self.shared = self.b
        self.kept = nn.BatchNorm2d(4, affine=False)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4,2,bias=False))
    def forward(self, x): return self.head(self.kept(self.bn(self.shared(self.act(self.a(x)))).relu()).relu())

@pytest.mark.parametrize('make,xb', [(Net, (torch.randn(2,3,8,8),)), (network, (torch.randn(2,3,8,8),))],
    ids=['odd','plain'])
@pytest.mark.parametrize('dtype', [torch.float32,torch.float64])
def test_folded_weights_into_a_fresh_model(make, xb, dtype, tmp_path):
    xb = tuple(x.to(dtype) for x in xb)
    folded = BN_Folder().fold(live(make(), dtype), *xb)
    torch.save(folded.state_dict(), tmp_path/'folded.pth')
    model = make().to(dtype).eval()
    frozen = next(model.parameters()).requires_grad_(False)
    assert BN_Folder().load(model, torch.load(tmp_path/'folded.pth')) is model
    assert torch.equal(model(*xb), folded(*xb)) and repr(model)==repr(folded)
    assert list(model.state_dict())==list(folded.state_dict()) and {p.dtype for p in model.parameters()}=={dtype}
    first,*_,last = list(model.state_dict(keep_vars=True).values())
    assert first is frozen and [p.requires_grad for p in (first, last)]==[False,True]
    bias = next(m.bias for m in model.modules() if getattr(m, 'weight', None) is frozen)
    assert frozen.requires_grad==bias.requires_grad # a new bias trains if the weight does

def test_shape_is_that_of_the_state():
    """What a fold decides by statistics is decided as it was there: an overflow in half precision, or a fold with other
    options"""
    x = torch.randn(2,3,8,8)
    def make():
        layers = nn.Conv2d(3,4,3),nn.BatchNorm2d(4, eps=1e-12),nn.ReLU(),nn.Conv2d(4,4,1,bias=False),nn.BatchNorm2d(4)
        return nn.Sequential(*layers).eval()
    model = live(make(), torch.float32)
    nn.init.constant_(model[1].running_var, 1e-12)
    folder = BN_Folder(verify=False)
    folded = folder.fold(model.half(), x.half())
    assert [o.name for o in folder.report.kept]==['1']
    assert len(BN_Folder().plan(make(), x).folded)==2 # a fresh one would fold both
    again = BN_Folder().load(make().half(), folded.state_dict())
    assert repr(again)==repr(folded) and bits(dict(again.state_dict()))==bits(dict(folded.state_dict()))

def test_unfolded_weights_too():
    model,fresh = live(network(), torch.float32),network()
    assert bits(dict(BN_Folder().load(fresh, model.state_dict()).state_dict()))==bits(dict(model.state_dict()))

def test_weights_of_learner_on_purpose(tmp_path):
    "`learn.model.state_dict()` is of the folded model; training goes on from the trained one"
    learn = learner(tmp_path, FoldCallback())
    learn.fit(1)
    torch.save(learn.model.state_dict(), tmp_path/'folded.pth')
    model = BN_Folder().load(network().eval(), torch.load(tmp_path/'folded.pth'))
    x = torch.stack([picture(i) for i in range(32,48)])
    with torch.no_grad(): assert torch.equal(model(x).softmax(1), learn.get_preds()[0])

def other_keys(state): return {f'module.{k}': v for k,v in state.items()}
def without_conv(state): return {k:v for k,v in state.items() if k!='0.0.weight'}
def other_shape(state): return {**state, '0.0.weight': torch.zeros(9,3,3,3)}
def half_a_norm(state): return {**state, '0.1.running_mean': torch.zeros(8)}
def whole_checkpoint(state): return dict(model=state, opt={})

@pytest.mark.parametrize('wrong', [other_keys, without_conv, other_shape, half_a_norm, whole_checkpoint])
def test_weights_that_do_not_fit(wrong):
    "Refused before anything is changed, with the names that don't fit"
    state,model = BN_Folder().fold(live(network(), torch.float32)).state_dict(),network()
    before,modules = bits(dict(model.state_dict())),list(model.modules())
    with pytest.raises(FoldError, match="don't fit a folded Sequential, or not this one [(].*make the model as"):
        BN_Folder().load(model, wrong(state))
    assert bits(dict(model.state_dict()))==before and list(model.modules())==modules
