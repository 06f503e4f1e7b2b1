"""What the notebook can't teach about learners: every way a training can begin, end and go on, against the same learner without fastfold.
Weights after training on must be the same bits, not similar ones"""
import subprocess, sys, warnings
from pathlib import Path
import pytest, torch
from torch import nn
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    from fastai.vision.all import (AvgPool, Callback, CancelFitException, ConvLayer, CrossEntropyLossFlat, Datasets, EarlyStoppingCallback,
        Flatten, Learner, LinBnDrop, MixUp, NormType, SaveModelCallback, TerminateOnNaNCallback, accuracy, load_learner, noop, set_seed)
    from fastai.callback.progress import ProgressCallback
    from fastai.tabular.all import TabularModel
from fastfold.all import BN_Folder, FoldCallback
from random_nets import live

pytestmark = pytest.mark.filterwarnings('ignore:load_learner', 'ignore::FutureWarning', 'ignore::DeprecationWarning')

def picture(i): return torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(i))
def label(i): return i%2

def learner(path, *cbs):
    "Two norms in the body, which go back, and two in the head, which go ahead"
    set_seed(42)
    dls = Datasets(range(48), [[picture],[label]], splits=(list(range(32)), list(range(32,48)))).dataloaders(bs=8, device='cpu', num_workers=0)
    model = nn.Sequential(ConvLayer(3,8), ConvLayer(8,8,stride=2), AvgPool(), Flatten(), LinBnDrop(32,8,p=.5,act=nn.ReLU()), LinBnDrop(8,2,p=.5))
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=path, cbs=list(cbs))
    learn.logger = noop
    return learn.remove_cbs([ProgressCallback])

def state(learn):
    "All that training has made: weights, buffers, optimizer state, and the random state it ends with"
    learn.unfold()
    moments = [t for o in learn.opt.state_dict()['state'] for t in o.values() if isinstance(t, torch.Tensor)]
    return [*learn.model.state_dict().values(), *moments, torch.get_rng_state()]

def same(a, b): return len(a)==len(b) and all(map(torch.equal, a, b))

class StopIn(Callback):
    "Stop in a batch, in a way of its own"
    order = 1
    def __init__(self, error): self.error = error
    def after_batch(self):
        if self.training and self.iter==2: raise self.error

def interrupted(learn):
    with pytest.raises(KeyboardInterrupt): learn.fit(2, cbs=StopIn(KeyboardInterrupt('stop')))
    learn.validate()

trainings = dict(
    fit=lambda l: l.fit(2), one_cycle=lambda l: l.fit_one_cycle(2), flat_cos=lambda l: l.fit_flat_cos(2), sgdr=lambda l: l.fit_sgdr(1, 1),
    fine_tune=lambda l: l.fine_tune(1),
    start_epoch=lambda l: l.fit(2, start_epoch=1), lr_find=lambda l: (l.lr_find(num_it=6, show_plot=False), l.fit(1)),
    mixup=lambda l: l.fit(1, cbs=MixUp()),
    early=lambda l: l.fit(3, cbs=EarlyStoppingCallback(min_delta=10)),
    cancelled=lambda l: l.fit(2, cbs=StopIn(CancelFitException('stop'))),
    best=lambda l: l.fit(2, cbs=SaveModelCallback()), nan=lambda l: l.fit(1, cbs=TerminateOnNaNCallback()))

class Branches(nn.Module):
    "A sum of linear layers of one value"
    def __init__(self):
        super().__init__()
        self.a,self.b,self.n = nn.Conv2d(8, 8, 3, padding=1),nn.Conv2d(8, 8, 1),nn.BatchNorm2d(8)
    def forward(self, x): return self.a(x) + self.b(x) + self.n(x)

def test_merge(tmp_path):
    "Merged when training ends; unmerged for the optimizer and for saving, and when training goes on"
    ends,preds = [],[]
    for cbs in [], [FoldCallback(merge=True)]:
        learn = learner(tmp_path, *cbs)
        learn.model.insert(1, Branches())
        for _ in range(2): learn.fit(1)
        if cbs: assert len(learn.fold_report.merged)==1 and list(dict(learn.model[1].named_modules()))==['', 'a']
        learn.save('model')
        assert torch.load(tmp_path/'models/model.pth', weights_only=False)['model'].keys()>={'1.a.weight', '1.n.weight'}
        learn.load('model')
        assert learn.is_folded==bool(cbs) and ('n' not in dict(learn.model[1].named_modules()) or not cbs)
        learn.export('m.pkl')
        preds += [learn.get_preds()[0], load_learner(tmp_path/'m.pkl').get_preds(dl=learn.dls.valid)[0]]
        ends.append(state(learn))
    assert same(*ends)
    assert all(torch.allclose(p, preds[0], atol=1e-5) for p in preds)

@pytest.mark.parametrize('name', trainings)
def test_trains_as_without(name, tmp_path, capsys):
    "each training twice, so that the second one starts from a folded learner"
    ends = []
    for cbs in [], [FoldCallback()]:
        learn = learner(tmp_path, *cbs)
        for _ in range(2): trainings[name](learn)
        assert learn.is_folded==bool(cbs)
        ends.append(state(learn))
    assert same(*ends)
    assert 'norms folded' in capsys.readouterr().out

def test_not_folded_when_interrupted(tmp_path):
    learn = learner(tmp_path, FoldCallback())
    interrupted(learn)
    assert not learn.is_folded
    learn.fold()
    assert len(learn.fold_report.folded)==4

def test_trained_on_after_fold_by_hand(tmp_path):
    ends = []
    for fold in False,True:
        learn = learner(tmp_path)
        learn.fit(1)
        if fold: learn.fold()
        learn.freeze()
        learn.fit(1)
        learn.unfreeze()
        learn.fit(1, reset_opt=True)
        ends.append(state(learn))
    assert same(*ends)

uses = dict(validate=lambda l: l.validate(), get_preds=lambda l: l.get_preds()[0], tta=lambda l: l.tta(n=2)[0], summary=lambda l: l.summary() and None,
    lr_find=lambda l: l.lr_find(num_it=6, show_plot=False) and None, nothing=lambda l: l.fit(0))

@pytest.mark.parametrize('name', uses)
def test_use_never_folds_or_unfolds(name, tmp_path):
    learn = learner(tmp_path, FoldCallback())
    learn.fit(1)
    set_seed(0)
    folded = uses[name](learn)
    assert learn.is_folded
    learn.unfold()
    set_seed(0)
    unfolded = uses[name](learn)
    assert not learn.is_folded
    if folded is not None: assert torch.allclose(torch.as_tensor(folded), torch.as_tensor(unfolded), atol=1e-5)

def test_permanent_save_model(tmp_path):
    "its checkpoints are those of the trained model, whatever validates in between"
    learn = learner(tmp_path, FoldCallback(), SaveModelCallback())
    learn.fit(1)
    learn.validate()
    learn.tta(n=1)
    learn.get_preds()
    assert learn.is_folded
    saved = torch.load(tmp_path/'models/model.pth', weights_only=False)
    assert saved.get('model', saved).keys() == learn.unfold().model.state_dict().keys()

def test_optimizer_made_while_folded(tmp_path):
    learn = learner(tmp_path)
    learn.fold()
    learn.freeze() # makes an optimizer
    assert learn.is_folded
    learn.unfreeze()
    before = [p.clone() for p in learn.unfold().model.parameters()]
    learn.fit(1)
    assert not any(torch.equal(a, b) for a,b in zip(before, learn.model.parameters()) if a.ndim>1)

def test_export_loads_without_fastfold(tmp_path):
    learn = learner(tmp_path, FoldCallback())
    learn.fit(1)
    opt,cbs,preds = learn.opt,list(learn.cbs),learn.get_preds()[0]
    learn.export()
    assert learn.opt is opt and list(learn.cbs)==cbs and learn.is_folded and len(learn.dls.train_ds)==32
    assert [o.name for o in tmp_path.glob('*.p*')]==['export.pkl']
    x = torch.stack([picture(i) for i in range(32,48)])
    torch.save(dict(x=x, preds=preds), tmp_path/'expected.pth')
    code = """
import sys, warnings
class Blocked:
    def find_spec(self, name, *args):
        if name.split('.')[0]=='fastfold': raise ImportError('blocked')
sys.meta_path.insert(0, Blocked())
warnings.simplefilter('ignore')
def picture(i): pass
def label(i): pass
sys.modules['test_learner'] = sys.modules['__main__']
from fastai.basics import *
learn = load_learner('export.pkl')
o = torch.load('expected.pth')
with torch.no_grad(): assert torch.allclose(learn.model.eval()(o['x']).softmax(1), o['preds'], atol=1e-6)
assert not any('BatchNorm' in type(m).__name__ for m in learn.model.modules())
"""
    res = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True)
    assert not res.returncode, res.stderr

def test_failed_export_changes_nothing(tmp_path, monkeypatch):
    learn = learner(tmp_path, FoldCallback())
    learn.fit(1)
    def full(*args, **kwargs):
        Path(args[1]).write_bytes(b'half')
        raise OSError('No space left on device')
    monkeypatch.setattr(torch, 'save', full)
    opt = learn.opt
    with pytest.raises(OSError): learn.export()
    assert not list(tmp_path.glob('*.p*')) and learn.opt is opt and learn.is_folded and len(learn.dls.train_ds)==32

def test_loaded_learner_folds_without_data(tmp_path):
    learner(tmp_path).export()
    report = load_learner(tmp_path/'export.pkl').fold()
    assert len(report.folded)==4

def test_learner_without_norms(tmp_path):
    learn = learner(tmp_path)
    learn.model = nn.Sequential(Flatten(), nn.Linear(192,2))
    assert not learn.fold().rows and not learn.is_folded
    learn.unfold().fit(1)

def test_tabular():
    "the norm of the continuous columns goes through the concatenation with the embeddings"
    model = TabularModel([(4,3)], 3, 2, [20,10]).eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm1d):
            for t in (m.running_mean, m.weight, m.bias): nn.init.uniform_(t, -1, 1)
    xs = torch.zeros(2, 1, dtype=torch.long),torch.randn(2, 3)
    folder = BN_Folder()
    folded = folder.fold(model, *xs)
    assert not folder.report.kept
    assert torch.allclose(folded(*xs), model(*xs), atol=1e-5)

@pytest.mark.parametrize('kind', [NormType.Batch, NormType.BatchZero, NormType.Weight, NormType.Spectral, NormType.Instance, NormType.InstanceZero])
@pytest.mark.parametrize('bn_1st', [True, False])
def test_norm_types(kind, bn_1st):
    "batch norms before the activation are folded; weights that are computed and norms without statistics stay as they are"
    model,x = live(ConvLayer(3, 4, norm_type=kind, bn_1st=bn_1st), torch.float32),torch.randn(2, 3, 8, 8)
    folder = BN_Folder()
    with torch.no_grad():
        want = model(x)
        torch.testing.assert_close(folder.fold(model, x, inplace=True)(x), want, rtol=1e-5, atol=1e-5) # a weight norm can't be copied
    assert len(folder.report.folded)==(bn_1st and kind in (NormType.Batch, NormType.BatchZero))
