"""Learners of every kind, trained, saved and changed in ways that `Learner.fit` doesn't see: as without fastfold, bit
for bit, or an error that says what to do"""
import copy, functools, inspect, os, pickle, subprocess, sys, warnings
import cloudpickle, numpy as np, pytest, torch
from torch import nn
from torch.utils.data import DataLoader as TorchLoader, TensorDataset
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    from fastai.vision.all import (Adam, Callback, CancelBatchException, CrossEntropyLossFlat, DataLoader, DataLoaders,
        Learner, LinBnDrop, OptimWrapper, ProgressCallback, load_learner, noop, set_seed)
from fastfold.all import FoldCallback, FoldError
from fastfold.training.sharing import watch_data
from tiny_learner import bits, label, learner, network, OwnFit, picture, same

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning', 'ignore:.*load_learner')

xs = torch.stack([picture(i) for i in range(32)])
ys = torch.tensor([label(i) for i in range(32)])
class Items:
    def __len__(self): return 32
    def __getitem__(self, i): return xs[i],ys[i]
class Stream(torch.utils.data.IterableDataset):
    def __len__(self): return 32
    def __iter__(self): return zip(xs, ys)
class Batches:
    "Not a loader of any library"
    def __len__(self): return 4
    def __iter__(self): return ((xs[i::4], ys[i::4]) for i in range(4))

loaders = dict(torch=lambda: TorchLoader(TensorDataset(xs, ys), batch_size=8, shuffle=True),
    torch_items=lambda: TorchLoader(Items(), batch_size=8),
    generator=lambda: TorchLoader(Items(), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(3)),
    stream=lambda: TorchLoader(Stream(), batch_size=8),
    sampler=lambda: TorchLoader(Items(), batch_sampler=[[0,1,2,3],[4,5,6,7]]),
    last=lambda: TorchLoader(Items(), batch_size=30), fastai=lambda: DataLoader(list(zip(xs, ys)), bs=8, shuffle=True),
    tensors=lambda: DataLoader(TensorDataset(xs, ys), bs=8),
    batches=lambda: [(xs[:8], ys[:8]), (xs[8:], ys[8:])], own=Batches)

def with_loaders(path, make, *cbs):
    set_seed(42)
    dls = DataLoaders(make(), make(), path=path, device='cpu')
    learn = Learner(dls, network(), loss_func=CrossEntropyLossFlat(), path=path, cbs=list(cbs))
    learn.logger = noop
    return learn.remove_cbs([ProgressCallback])

def trained_state(learn):
    "All that training has made, of loaders without a state of their own, too"
    learn.unfold()
    gens = [g.get_state() for dl in learn.dls.loaders for g in [getattr(dl, 'generator', None)] if g is not None]
    return bits(dict(weights=dict(learn.model.state_dict()), rng=torch.get_rng_state(), gens=gens,
        moments=[[learn.opt.state.get(p, {}) for p in g] for g in learn.opt.param_lists]))

@pytest.mark.parametrize('name', loaders)
def test_loaders(name, tmp_path):
    "that `Learner` takes: fold, refresh and measure, at no cost to the training that follows"
    ends = []
    for cbs in [], [FoldCallback()]:
        learn = with_loaders(tmp_path, loaders[name], *cbs)
        learn.fit(1)
        if cbs:
            assert learn.is_folded
            assert len(learn.fold(verify=False).folded)==4
            assert len(learn.fold(refresh_bn=2).folded)==4
            assert learn.fold_bench(batch_sizes=(1,), rounds=1, min_time=1e-4, forms=['folded']).rows
        learn.fit(1)
        ends.append(trained_state(learn))
    same(*ends)

def test_inputs_alone(tmp_path):
    "A batch of one tensor is an input"
    dls = DataLoaders(*[TorchLoader(TensorDataset(xs), batch_size=8) for _ in range(2)], path=tmp_path)
    learn = Learner(dls, network(), loss_func=lambda p: p.mean(), path=tmp_path)
    assert len(learn.fold().folded)==4

# trainings of one's own
class OtherFit(Learner):
    "Comes by `fit` in another way"
    def train_for(self, epochs):
        if not self.opt: self.create_opt()
        self.n_epoch = epochs
        self._with_events(self._do_fit, 'fit', KeyError, self._end_cleanup)

def by_events(learn, n=1):
    if not learn.opt: learn.create_opt()
    learn.n_epoch = n
    learn('before_fit')
    for learn.epoch in range(n):
        learn(['before_epoch', 'before_train'])
        learn.dl = learn.dls.train
        learn.all_batches()
        learn(['after_train', 'after_epoch'])
    learn('after_fit')

def fold_each_epoch(learn):
    class Folds(Callback):
        order = 101
        def after_epoch(self):
            if folds: self.learn.fold()
    folds = any(isinstance(o, FoldCallback) for o in learn.cbs)
    learn.fit(3, cbs=Folds())

def fold_each_batch(learn):
    def after_batch(cb):
        if folds: cb.learn.fold()
    folds = any(isinstance(o, FoldCallback) for o in learn.cbs)
    learn.fit(1, cbs=Callback(after_batch=after_batch))

ways = dict(own_fit=(OwnFit, lambda l: l.fit(2)), other_fit=(OtherFit, lambda l: l.train_for(2)),
    events=(Learner, by_events), each_epoch=(Learner, fold_each_epoch), each_batch=(Learner, fold_each_batch))

@pytest.mark.parametrize('name', ways)
def test_training_without_fit(name, tmp_path):
    watch_data() # as from the first fold with normalize=True on
    cls,train = ways[name]
    ends = []
    for cbs in [], [FoldCallback()]:
        learn = learner(tmp_path, *cbs)
        learn.__class__ = cls
        for _ in range(2):
            train(learn)
            if cbs:
                learn.fold()
                assert learn.is_folded
        ends.append(trained_state(learn))
    same(*ends)

def test_folded_by_hand_then_other_training(tmp_path):
    "without any callback"
    ends = []
    for fold in noop,Learner.fold:
        learn = learner(tmp_path)
        learn.fit(1)
        fold(learn)
        by_events(learn)
        fold(learn)
        by_events(learn, 2)
        ends.append(trained_state(learn))
    same(*ends)

def test_no_class_is_changed(tmp_path):
    """by importing, folding or training; so libraries that change `Learner` themselves go on as before, however often
    this one is loaded"""
    code = """
import warnings; warnings.simplefilter('ignore')
import importlib, functools, sys
from fastai.vision.all import *
sys.path.insert(0, sys.argv[1])
calls = []
def replaced(name):
    orig = getattr(Learner, name)
    def f(self, *a, **k):
        calls.append(name)
        return orig(self, *a, **k)
    setattr(Learner, name, f)
replaced('fit')
before = dict(vars(Learner))
import fastfold.learner
from fastfold.all import *
new = {'fold', 'unfold', 'is_folded', 'fold_report', 'fold_bench'}
assert {k for k,v in vars(Learner).items() if before.get(k) is not v}==new
replaced('save')
importlib.reload(fastfold.learner)
from tiny_learner import learner
learn = learner(Path(sys.argv[2]), fastfold.learner.FoldCallback())
learn.fit(1)
replaced('load')
learn.save('a')
learn.load('a')
assert learn.is_folded and calls==['fit', 'save', 'load'], calls
"""
    subprocess.run([sys.executable, '-c', code, os.path.dirname(__file__), str(tmp_path)], check=True)

def test_signatures(tmp_path):
    learn = learner(tmp_path, FoldCallback())
    for k in 'fit','save','load','export','create_opt':
        assert inspect.signature(getattr(learn, k))==inspect.signature(getattr(Learner, k).__get__(learn))
    options = {'refresh_bn', 'normalize', 'others', 'layers', 'handlers', 'forward', 'affine', 'layer_scale', 'merge',
        'only', 'skip', 'unshare', 'verify', 'tol'}
    assert set(inspect.signature(FoldCallback).parameters)==options
    assert set(inspect.signature(Learner.fold).parameters)==options|{'self', 'xb'}
    assert 'batch_sizes' in inspect.signature(Learner.fold_bench).parameters
    for f in (lambda: learn.fold(verfy=False)),(lambda: FoldCallback(verfy=False)):
        with pytest.raises(FoldError, match="no option 'verfy': the options are refresh_bn, .*verify") as e: f()
        assert isinstance(e.value, TypeError)
    with pytest.raises(FoldError, match="no option 'round': the options are batch_sizes, rounds"):
        learn.fold_bench(round=1)

# methods that classes override
class OwnMethods(Learner):
    "With `load`, `save`, `export` and `create_opt` that don't ask `Learner`"
    def save(self, file, **kwargs):
        torch.save(self.model.state_dict(), self.path/file)
        return self.path/file
    def load(self, file, device=None, **kwargs):
        self.model.load_state_dict(torch.load(self.path/file))
        return self
    def load_part(self, file): return self.load(file)
    def create_opt(self): self.opt = self.opt_func(self.splitter(self.model), lr=self.lr)
    def export(self, fname='export.pkl', pickle_module=cloudpickle, pickle_protocol=2):
        opt,self.opt,dls,self.dls = self.opt,None,self.dls,self.dls.new_empty()
        torch.save(self, self.path/fname, pickle_module=pickle_module, pickle_protocol=pickle_protocol)
        self.opt,self.dls = opt,dls

def test_overridden_methods(tmp_path):
    learn = learner(tmp_path)
    learn.__class__ = OwnMethods
    learn.fit(1)
    keys = learn.model.state_dict().keys()
    learn.fold()
    assert torch.load(learn.save('a.pth')).keys()==keys and learn.is_folded
    for load in learn.load,learn.load_part: assert load('a.pth') is learn and learn.is_folded
    learn.create_opt()
    assert sum(len(o) for o in learn.opt.param_lists)==len([*learn.unfold().model.parameters()])
    learn.fold()
    learn.export('a.pkl')
    assert b'fastfold' not in pickled(tmp_path/'a.pkl') and learn.is_folded and learn.opt

def pickled(file):
    import zipfile
    z = zipfile.ZipFile(file)
    return z.read(next(n for n in z.namelist() if n.endswith('data.pkl')))

# export
def test_export_positionally(tmp_path):
    for cbs in [], [FoldCallback()]:
        learn = learner(tmp_path, *cbs)
        learn.fit(1)
        learn.fold()
        learn.export('a.pkl', cloudpickle, 4)
        assert not load_learner(tmp_path/'a.pkl').is_folded and b'fastfold' not in pickled(tmp_path/'a.pkl')

def test_export_through_a_link(tmp_path):
    learn = learner(tmp_path)
    learn.fold()
    (tmp_path/'real').mkdir()
    (tmp_path/'real/a.pkl').write_bytes(b'old')
    (tmp_path/'a.pkl').symlink_to('real/a.pkl')
    (tmp_path/'b.pkl').symlink_to('real/b.pkl') # to nothing yet
    for n in 'a','b':
        learn.export(f'{n}.pkl')
        assert (tmp_path/f'{n}.pkl').is_symlink() and not load_learner(tmp_path/f'real/{n}.pkl').is_folded
    assert {o.name for o in (tmp_path/'real').iterdir()}=={'a.pkl', 'b.pkl'}

@pytest.mark.skipif(not hasattr(os, 'mkfifo'), reason='this system has no named pipes')
def test_export_to_a_pipe(tmp_path):
    "is written to, not replaced"
    import threading
    learn = learner(tmp_path)
    learn.fold()
    os.mkfifo(tmp_path/'pipe')
    got = []
    t = threading.Thread(target=lambda: got.append((tmp_path/'pipe').read_bytes()))
    t.start()
    try: learn.export('pipe')
    except RuntimeError: pass # PyTorch may want to seek in it
    t.join(10)
    assert (tmp_path/'pipe').is_fifo() and sorted(o.name for o in tmp_path.iterdir())==['pipe']

@pytest.mark.parametrize('error', [
    OSError(28, 'No space left on device'),
    RuntimeError('PytorchStreamWriter failed writing file data/0: file write failed'),
    RuntimeError('[enforce fail at inline_container.cc:820] . unexpected pos 64 vs 0')])
def test_export_to_a_full_disk(error, tmp_path, monkeypatch):
    learn = learner(tmp_path, FoldCallback())
    learn.fit(1)
    learn.export()
    old = (tmp_path/'export.pkl').read_bytes()
    def full(*args, **kwargs): raise error
    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(OSError, match="can't write .*export.pkl .*make room.*as it was"): learn.export()
    assert (tmp_path/'export.pkl').read_bytes()==old and [o.name for o in tmp_path.iterdir()]==['export.pkl']
    assert learn.is_folded and len(learn.dls.train_ds)==32

class Names(Learner):
    def export(self, fname=None):
        super().export(fname or 'mine.pkl')
        self.exported = fname
        return self.path/'mine.pkl'
class Ends(Learner):
    def export(self, file): super().export(f'{file}.pkl')

def test_export_of_its_own(tmp_path):
    learn = learner(tmp_path, FoldCallback())
    learn.fit(1)
    learn.__class__ = Names
    assert learn.export()==tmp_path/'mine.pkl' and learn.exported is None and learn.is_folded and learn.opt
    learn.__class__ = Ends
    learn.export(file='a')
    assert {o.name for o in tmp_path.iterdir()}=={'mine.pkl', 'a.pkl'} and len(learn.dls.train_ds)==32
    for o in tmp_path.iterdir(): assert b'fastfold' not in pickled(o) and not n_norms(load_learner(o).model)

def test_export_keeps_permissions(tmp_path):
    learn = learner(tmp_path, FoldCallback())
    learn.fit(1)
    learn.export()
    (tmp_path/'export.pkl').chmod(0o600)
    learn.export()
    assert (tmp_path/'export.pkl').stat().st_mode&0o777==0o600
    os.link(tmp_path/'export.pkl', tmp_path/'same.pkl')
    learn.export('a'*250)
    learn.export()
    assert (tmp_path/'export.pkl').stat().st_nlink==2

def norms_apart(model):
    return [[p for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) for p in m.parameters()],
        [p for m in model.modules() if isinstance(m, (nn.Conv2d,nn.Linear)) for p in m.parameters()]]
def norms_only(params, **kwargs):
    assert len(params)==2 and all(params)
    return Adam(params, **kwargs)

def test_export_with_norms_in_a_group_of_their_own(tmp_path):
    learn = learner(tmp_path, FoldCallback())
    learn.splitter,learn.opt_func = norms_apart,norms_only
    learn.fit(1)
    learn.export()
    assert learn.is_folded and learn.opt and not n_norms(load_learner(tmp_path/'export.pkl').model)

# methods
class Others(Learner):
    @staticmethod
    def load_config(f): return f
    def save_copy(self, learn, orig): return learn,orig
    def _call_one(self, event_name, quiet=True): return super()._call_one(event_name)

def test_methods_are_as_before(tmp_path):
    learn = learner(tmp_path)
    learn.__class__ = Others
    learn.fold()
    assert learn.load_config(1)==1 and learn.save_copy(learn=1, orig=2)==(1,2)
    learn._call_one('before_fit', quiet=False)
    plain = Learner.fit.__get__(learn)
    for k in '__name__','__self__','__func__','__qualname__','__doc__': assert getattr(learn.fit, k)==getattr(plain, k)
    learn.fit = functools.wraps(learn.fit)(lambda *args, f=learn.fit, **kwargs: f(*args, **kwargs))
    learn.fit(1)
    assert not learn.is_folded

def test_batches_of_many_sizes(tmp_path):
    "aren't all remembered, nor those of predictions; batches that can't be cut don't stop a training"
    sizes = [(torch.randn(2, 3, 8+2*i, 8), torch.tensor([0,1])) for i in range(20)]
    seen = []
    model = nn.Sequential(nn.Conv2d(3,4,3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4,2))
    learn = Learner(DataLoaders(sizes, sizes), model, loss_func=CrossEntropyLossFlat(), path=tmp_path,
        cbs=[FoldCallback(), Callback(after_batch=lambda cb: seen.append(len(cb.learn.fold_callback.fold_others)))])
    learn.logger = noop
    learn.remove_cbs([ProgressCallback])
    learn.fit(1)
    assert max(seen)==4 and learn.is_folded
    learn.get_preds(dl=sizes)
    assert not learn.fold_callback.fold_others
    ragged = [(torch.nested.nested_tensor([torch.randn(i+1,6) for i in range(4)]), torch.tensor([0,1,0,1]))]*3
    class Padded(nn.Module):
        def __init__(self): super().__init__(); self.layers = nn.Sequential(nn.Linear(6,4), nn.Linear(4,2))
        def forward(self, x): return self.layers(x.to_padded_tensor(0.)).mean(1)
    dls = DataLoaders(ragged, ragged)
    learn = Learner(dls, Padded(), loss_func=CrossEntropyLossFlat(), path=tmp_path, cbs=FoldCallback())
    learn.logger = noop
    with pytest.warns(UserWarning, match='is trained, but was not folded'): learn.remove_cbs([ProgressCallback]).fit(1)

class Noisy(torch.utils.data.Dataset):
    "With random numbers of its own"
    def __init__(self): self.rng = np.random.default_rng(0)
    def __len__(self): return 32
    def __getitem__(self, i): return xs[i]+self.rng.random(dtype=np.float32),ys[i]

def test_generators_of_datasets(tmp_path):
    ends = []
    for options in None,{},dict(refresh_bn=2):
        gen,ds = torch.Generator().manual_seed(1),Noisy()
        sampler = torch.utils.data.BatchSampler(torch.utils.data.RandomSampler(range(32), generator=gen), 8, False)
        learn = with_loaders(tmp_path, lambda: TorchLoader(ds, batch_sampler=sampler))
        learn.fit(1)
        if options is not None: learn.fold(**options)
        learn.fit(1)
        ends.append(trained_state(learn))
    same(ends[0], ends[1])
    same(ends[0], ends[2])

# changed while folded
def step(learn):
    opt = torch.optim.SGD(learn.model.parameters(), lr=.1)
    learn.model(xs).sum().backward()
    opt.step()
    opt.zero_grad()

def average(learn): learn.model.load_state_dict({k:v*.9 for k,v in learn.model.state_dict().items()})

@pytest.mark.parametrize('change', [step, average])
def test_changed_while_folded(change, tmp_path):
    "is not lost without a word"
    learn = learner(tmp_path, FoldCallback())
    learn.fit(1)
    change(learn)
    now = bits(dict(learn.model.state_dict()))
    says = r"the weights of .*0\.0.* have been changed while .*learn.unfold\(\) first"
    for f in (lambda: learn.fit(1)),(lambda: learn.fit_one_cycle(1)),(lambda: by_events(learn)):
        with pytest.raises(Exception, match=says): f()
        assert learn.is_folded and bits(dict(learn.model.state_dict()))==now
    with pytest.warns(UserWarning, match='What is saved are the weights as they were trained before'): learn.save('a')
    assert bits(dict(learn.model.state_dict()))==now
    learn.export()
    with pytest.warns(UserWarning, match='these changes are lost'): learn.unfold()
    learn.fit(1)
    change(learn)
    learn.model,learn.opt = copy.deepcopy(learn.model),None # what the error says
    learn.fit(1)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in learn.model.modules())

def test_frozen_while_folded(tmp_path):
    learn = learner(tmp_path, FoldCallback())
    learn.fit(1)
    learn.model.requires_grad_(False)
    learn.unfold()
    assert not any(p.requires_grad for p in learn.model.parameters())

def test_frozen_by_the_learner_and_by_hand(tmp_path):
    "whoever was the last to say so, while the model was folded"
    learn = learner(tmp_path, FoldCallback())
    learn.fit(1)
    learn.model.requires_grad_(False)
    learn.unfreeze()
    learn.fit(1) # trains
    assert all(p.requires_grad for p in learn.unfold().model.parameters())
    learn.fold()
    learn.freeze_to(1)
    learn.model.requires_grad_(True)
    assert all(p.requires_grad for p in learn.unfold().model.parameters())

def test_optimizer_of_the_folded_model(tmp_path):
    "would train nothing"
    learn = learner(tmp_path, FoldCallback())
    learn.fit(1)
    learn.opt = OptimWrapper(opt=torch.optim.SGD(learn.model.parameters(), lr=.1))
    for _ in range(2):
        with pytest.raises(FoldError, match='learn.opt=None'): learn.fit(1)
        assert learn.is_folded
    learn.opt = None
    learn.fit(1)
    learn.unfold().opt = OptimWrapper(opt=torch.optim.SGD(learn.model.parameters(), lr=.1))
    before = bits(dict(learn.model.state_dict()))
    learn.fit(1)
    assert bits(dict(learn.unfold().model.state_dict()))!=before

def n_norms(model): return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())

def flat():
    return nn.Sequential(nn.Conv2d(3,8,3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(288,2), nn.BatchNorm1d(2))

@pytest.mark.parametrize('model', [network, flat])
def test_model_of_another_learner(model, tmp_path):
    "is trained with its norms; so is one with the same body and a new head"
    ends = []
    for cbs in [], [FoldCallback()]:
        torch.manual_seed(1)
        learn = learner(tmp_path, *cbs, model=model())
        learn.fit(1)
        learn = learner(tmp_path, *cbs, model=learn.model)
        assert n_norms(learn.model)==(4 if model is network else 2)
        learn.fit(1)
        learn.model,learn.opt = nn.Sequential(*learn.model[:4], nn.Linear(32 if model is network else 288, 2)),None
        torch.manual_seed(0)
        nn.init.normal_(learn.model[-1].weight)
        nn.init.zeros_(learn.model[-1].bias)
        learn.fit(1)
        if cbs: assert len(learn.fold_report.folded)==(2 if model is network else 1)
        learn.unfold()
        ends.append(bits(dict(learn.model.state_dict())))
    same(*ends)

class Halve(Callback):
    "What the model gets is not what the loader gives"
    order,n = 5,0
    def before_batch(self):
        self.n += 1
        self.learn.xb = tuple(100+x/50 for x in self.xb)

@pytest.mark.parametrize('fold', [lambda l: l.fold(refresh_bn=4), lambda l: l.fold(), lambda l: None])
def test_batches_changed_by_callbacks(fold, tmp_path):
    "are those that statistics are taken from"
    learn = learner(tmp_path, Halve(), FoldCallback(refresh_bn=4))
    learn.fit(2)
    n = learn.halve.n
    want = learn.unfold().validate()[0]
    fold(learn)
    assert learn.halve.n==n+2 and abs(learn.validate()[0]-want)<.3*want

def skips(cb): raise CancelBatchException
@pytest.mark.parametrize('before_batch', [lambda cb: cb.iter, lambda cb: cb.opt.hypers, skips])
def test_callbacks_that_need_a_fit(before_batch, tmp_path):
    learn = learner(tmp_path, Callback(before_batch=lambda cb: None if cb.learn.is_folded else before_batch(cb.learn)))
    assert len(learn.fold().folded)==4
    assert not {'xb', 'yb', 'training'} & vars(learn).keys() - vars(learner(tmp_path)).keys()

def test_load_that_fails(tmp_path):
    "leaves what it would leave without folding; what can't be folded is loaded all the same"
    ends = []
    other = learner(tmp_path, model=nn.Sequential(*network()[:5], LinBnDrop(8,3,p=.5)))
    other.save('other', with_opt=False)
    spoilt = learner(tmp_path)
    spoilt.model[0][1].running_mean.fill_(float('nan'))
    spoilt.save('nan in a norm', with_opt=False) # which stays
    [*spoilt.model.parameters()][-1].data.fill_(float('nan'))
    spoilt.save('nan', with_opt=False) # nothing is left to compare
    for cbs in [], [FoldCallback()]:
        learn = learner(tmp_path, *cbs)
        learn.fit(1)
        with pytest.raises(RuntimeError, match='size mismatch'): learn.load('other', with_opt=False)
        want = learn.validate()[0]
        assert abs(learn.unfold().validate()[0]-want)<1e-5
        ends.append(trained_state(learn))
        learn.fold()
        if cbs:
            learn.load('nan in a norm')
            assert learn.is_folded and [o.why.key for o in learn.fold_report.kept]==['not_finite']
            with pytest.warns(UserWarning, match="isn't folded any more"): learn.load('nan')
        assert not learn.is_folded or not cbs
    same(*ends)

def test_replaced_while_folded(tmp_path):
    learn = learner(tmp_path, FoldCallback())
    learn.fit(1)
    learn.model[0] = copy.deepcopy(learn.model[0])
    with pytest.warns(UserWarning, match='unfold first, then replace'): learn.fit(1, reset_opt=True)

# files
@pytest.mark.parametrize('dump', [lambda o, f: pickle.dump(o, open(f, 'wb')), torch.save])
@pytest.mark.parametrize('options', [{}, dict(merge=True), dict(refresh_bn=2)])
def test_pickled(dump, options, tmp_path):
    def load():
        if dump is torch.save: return torch.load(tmp_path/'l', weights_only=False)
        return pickle.load(open(tmp_path/'l', 'rb'))
    learn = learner(tmp_path, FoldCallback(**options))
    for do in (lambda: None),(lambda: learn.fit(1)),learn.unfold:
        do()
        dump(learn, tmp_path/'l')
        back = load()
        assert back.is_folded==learn.is_folded and back.fold_callback.learn is back
        want = bits(dict(back.unfold().model.state_dict()))
        assert want==bits(dict(copy.deepcopy(learn).unfold().model.state_dict())) and not back.is_folded
        back.fit(1)
        assert back.is_folded

def test_import_is_all_that_is_needed():
    "for what a plain learner does to be the same: nothing of fastfold is in it"
    ours = [k for k,v in vars(Learner).items() if 'fastfold' in getattr(v, '__module__', '')]
    assert not {*ours} - {'fold', 'unfold', 'fold_bench'}
