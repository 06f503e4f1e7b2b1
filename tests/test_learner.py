"""What the notebook can't teach about learners: every way a training can begin, end and go on, against the same learner
without fastfold. What training on gives must be the same bits, not similar ones"""
import warnings
from copy import deepcopy
import pytest, torch
from torch import nn
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    from fastai.vision.all import (BnFreeze, Callback, CancelFitException, ChannelsLast, CSVLogger, CutMix,
        EarlyStoppingCallback, Flatten, GradientAccumulation, GradientClip, Interpretation, MixUp, ModelToHalf,
        ParamScheduler, ReduceLROnPlateau, SaveModelCallback, SchedCos, TerminateOnNaNCallback, load_learner, noop,
        set_seed)
    from fastai.distributed import ParallelTrainer
from fastfold.all import FoldCallback, FoldError
from tiny_learner import bits, learner, picture, same, state

pytestmark = pytest.mark.filterwarnings('ignore::FutureWarning', 'ignore::DeprecationWarning',
    'ignore:.*autocast', 'ignore:.*GradScaler')

class StopIn(Callback):
    "Stop in a batch of the second epoch, in a way of its own"
    order = 1
    def __init__(self, error): self.error = error
    def after_batch(self):
        if self.training and self.epoch==self.n_epoch-1 and self.iter==2: raise self.error

class Poison(Callback):
    "Data as they are when a picture is broken"
    def before_batch(self):
        if self.training and self.iter==2: self.learn.xb = tuple(x*float('nan') for x in self.xb)

def lr_find(learn): learn.lr_find(num_it=6, show_plot=False)

def one_of_each(learn):
    learn.fit_one_cycle(1)
    learn.fit_sgdr(1, 1)
    learn.fine_tune(1)

def frozen_between(learn):
    learn.fit(1)
    learn.freeze()
    learn.fit(1)
    learn.unfreeze()
    learn.fit(1)

trainings = dict(
    fit=lambda l: l.fit(2), one_cycle=lambda l: l.fit_one_cycle(2), flat_cos=lambda l: l.fit_flat_cos(2),
    sgdr=lambda l: l.fit_sgdr(1, 1), fine_tune=lambda l: l.fine_tune(1), mixed=one_of_each,
    reset_opt=lambda l: l.fit(1, reset_opt=True), frozen=frozen_between, start_epoch=lambda l: l.fit(2, start_epoch=1),
    none_then_one=lambda l: (l.fit(0), l.fit(1)), lr_find=lambda l: (lr_find(l), l.fit(1)),
    mixup=lambda l: l.fit(1, cbs=MixUp()), cutmix=lambda l: l.fit(1, cbs=CutMix()),
    accumulated=lambda l: l.fit(1, cbs=GradientAccumulation(16)),
    clipped=lambda l: l.fit(1, cbs=GradientClip()), bn_freeze=lambda l: (l.freeze(), l.fit(1, cbs=BnFreeze())),
    scheduled=lambda l: l.fit(1, cbs=ParamScheduler({'lr': SchedCos(1e-3, 1e-4)})),
    plateau=lambda l: l.fit(2, cbs=ReduceLROnPlateau(min_delta=10)),
    early=lambda l: l.fit(3, cbs=EarlyStoppingCallback(min_delta=10)),
    sane=lambda l: l.fit(1, cbs=TerminateOnNaNCallback()),
    cancelled=lambda l: l.fit(2, cbs=StopIn(CancelFitException('stop'))),
    cancelled_at_once=lambda l: l.fit(1, cbs=StopIn(CancelFitException('stop'))),
    best=lambda l: l.fit(2, cbs=SaveModelCallback()), best_opt=lambda l: l.fit(2, cbs=SaveModelCallback(with_opt=True)),
    logged=lambda l: l.fit(1, cbs=CSVLogger()))

class Branches(nn.Module):
    "A sum of linear layers of one value"
    def __init__(self):
        super().__init__()
        self.a,self.b,self.n = nn.Conv2d(8, 8, 3, padding=1),nn.Conv2d(8, 8, 1),nn.BatchNorm2d(8)
    def forward(self, x): return self.a(x) + self.b(x) + self.n(x)

class Scaled(nn.Module):
    "A residual branch that ends in a layer scale, as ConvNeXt has it"
    def __init__(self):
        super().__init__()
        self.a,self.n = nn.Conv2d(8, 8, 3, padding=1),nn.BatchNorm2d(8)
        self.scale = nn.Parameter(torch.linspace(-1, 1, 8).view(8, 1, 1))
    def forward(self, x): return self.scale*self.n(self.a(x)) + x

@pytest.mark.parametrize('block,options,left', [
    (Branches, dict(merge=True), ['a_merged.bias', 'a_merged.weight']),
    (Scaled, dict(layer_scale=True), ['a.bias', 'a.weight']),
    (Scaled, dict(layer_scale=True, merge=True), ['a_merged.bias', 'a_merged.weight'])])
def test_other_forward(tmp_path, block, options, left):
    "Rewritten when training ends; as before for the optimizer and for saving, and when training goes on"
    ends,preds = [],[]
    for cbs in [], [FoldCallback(**options)]:
        learn = learner(tmp_path, *cbs)
        learn.model.insert(1, block())
        names = {f'1.{n}' for n,_ in learn.model[1].named_parameters()}
        for _ in range(2): learn.fit(1)
        if cbs: assert sorted(n for n,_ in learn.model[1].named_parameters())==left
        learn.save('model')
        assert torch.load(tmp_path/'models/model.pth', weights_only=False)['model'].keys()>=names
        learn.load('model')
        assert learn.is_folded==bool(cbs) and (len([*learn.model[1].parameters()])==2 or not cbs)
        learn.export('m.pkl')
        preds += [learn.get_preds()[0], load_learner(tmp_path/'m.pkl').get_preds(dl=learn.dls.valid)[0]]
        ends.append(state(learn))
    for o in ends: del o['epochs'] # get_preds notes what the folded model made
    same(*ends)
    assert all(torch.allclose(p, preds[0], atol=1e-5) for p in preds)

@pytest.mark.parametrize('name', trainings)
def test_trains_as_without(name, tmp_path):
    "each training twice, so that the second one starts from a folded learner"
    ends = []
    for cbs in [], [FoldCallback()]:
        learn = learner(tmp_path, *cbs)
        for _ in range(2): trainings[name](learn)
        assert learn.is_folded==bool(cbs)
        ends.append(state(learn))
    same(*ends)
    assert len(learn.fold_report.folded)==4

permanent = dict(mixup=lambda: [MixUp()], accumulated=lambda: [GradientAccumulation(16)],
    channels_last=lambda: [ChannelsLast()], logged=lambda: [CSVLogger(append=True)],
    best=lambda: [SaveModelCallback()], every=lambda: [SaveModelCallback(every_epoch=True)],
    at_end=lambda: [SaveModelCallback(at_end=True)], early=lambda: [EarlyStoppingCallback(patience=5)],
    parallel=lambda: [ParallelTrainer(None)])
permanent |= dict(fp16=lambda: 'to_fp16', bf16=lambda: 'to_bf16', all_last=lambda: 'to_channelslast')

def use(learn):
    learn.validate()
    learn.get_preds()
    learn.tta(n=1)

@pytest.mark.parametrize('name', permanent)
def test_trains_as_without_with_permanent(name, tmp_path):
    "callbacks that the learner keeps see all its uses in between, too"
    ends = []
    for cbs in [], [FoldCallback()]:
        more = permanent[name]()
        learn = learner(tmp_path, *([] if isinstance(more, str) else more), *cbs)
        if isinstance(more, str): getattr(learn, more)()
        for _ in range(2):
            learn.fit(2)
            use(learn)
        assert learn.is_folded==bool(cbs)
        ends.append(state(learn))
    same(*ends)

between = dict(fold=lambda l: l.fold(), twice=lambda l: (l.fold(), l.fold()),
    there_and_back=lambda l: (l.fold(), l.unfold(), l.unfold()),
    with_options=lambda l: (l.fold(), l.fold(forward=False)),
    refreshed=lambda l: l.fold(refresh_bn=3), again=lambda l: (l.fold(refresh_bn=2), l.fold(refresh_bn=3)),
    saved=lambda l: (l.fold(refresh_bn=2), l.save('a', with_opt=True), l.load('a', with_opt=True)),
    exported=lambda l: (l.fold(), l.export()))
# fastai draws random numbers there
baseline = dict(saved=lambda l: (l.save('a', with_opt=True), l.load('a', with_opt=True)), exported=lambda l: l.export())

@pytest.mark.parametrize('name', between)
def test_trained_on_after_fold_by_hand(name, tmp_path):
    "with a frozen and an unfrozen training to follow, and a new optimizer"
    ends = []
    for f in baseline.get(name, lambda l: None), between[name]:
        learn = learner(tmp_path)
        learn.fit(1)
        f(learn)
        learn.freeze()
        learn.fit(1)
        f(learn)
        learn.unfreeze()
        learn.fit(1, reset_opt=True)
        ends.append(state(learn))
    same(*ends)

def test_callback_of_one_fit(tmp_path):
    "it folds at the end of that fit only, and the next one starts unfolded"
    learn = learner(tmp_path)
    learn.fit(1, cbs=FoldCallback())
    assert learn.is_folded
    learn.fit(1)
    assert not learn.is_folded

def test_two_callbacks(tmp_path):
    learn,plain = learner(tmp_path, FoldCallback()),learner(tmp_path)
    set_seed(0)
    learn.fit(1, cbs=FoldCallback(forward=False))
    assert learn.is_folded
    set_seed(0)
    plain.fit(1)
    same(state(learn), state(plain))

def test_wrong_option_is_told_before_training():
    for kwargs in dict(refresh=5), dict(refresh_bn=True), dict(refresh_bn=-1), dict(refresh_bn=.5):
        with pytest.raises((TypeError,FoldError), match='refresh'): FoldCallback(**kwargs)

interruptions = dict(first=lambda l: l.fit(1, cbs=StopIn(KeyboardInterrupt('stop'))),
    later=lambda l: l.fit(2, cbs=StopIn(KeyboardInterrupt('stop'))),
    failed=lambda l: l.fit(2, cbs=StopIn(KeyboardInterrupt())),
    mixup=lambda l: l.fit(2, cbs=[MixUp(), StopIn(KeyboardInterrupt('stop'))]),
    parallel=lambda l: l.fit(2, cbs=[ParallelTrainer(None), StopIn(KeyboardInterrupt('stop'))]))

@pytest.mark.parametrize('folded_before', [False,True])
@pytest.mark.parametrize('name', interruptions)
def test_interrupted(name, folded_before, tmp_path):
    """not folded, nothing lost, not folded by the next use; and `fold` works right after, through what was left around
    the model"""
    ends = []
    for cbs in [], [FoldCallback()]:
        learn = learner(tmp_path, *cbs)
        if folded_before: learn.fit(1)
        with pytest.raises((KeyboardInterrupt,IndexError)): interruptions[name](learn)
        assert not learn.is_folded
        if name!='mixup': learn.validate() # MixUp leaves a loss behind that can't validate
        assert not learn.is_folded
        want,epochs = learn.get_preds()[0] if name!='mixup' else None,list(learn.recorder.values)
        if cbs: assert len(learn.fold().folded)==4 and learn.is_folded
        if cbs and want is not None: assert torch.allclose(learn.get_preds()[0], want, atol=1e-5)
        elif want is not None: learn.get_preds()
        ends.append(state(learn) | dict(epochs=bits(epochs))) # the recorder has seen the folded model since
    same(*ends)

def test_nan(tmp_path):
    "A training that ends in NaN isn't folded, and says so"
    learn = learner(tmp_path, FoldCallback())
    with pytest.warns(UserWarning, match="the model is trained, but was not folded: .*NaN or infinite"):
        learn.fit(1, cbs=[Poison(), TerminateOnNaNCallback()])
    assert not learn.is_folded
    assert {o.why.key for o in learn.fold().rows}=={'not_finite'} and not learn.is_folded

def test_last_batch_of_one(tmp_path):
    "isn't the one to remember, as it shows less"
    cb = FoldCallback()
    learn = learner(tmp_path, cb)
    learn.dls.loaders[1] = learn.dls.valid.new(bs=15)
    learn.fit(1)
    assert len(cb.fold_xb[0])==2 and len(learn.fold_report.folded)==4

class Halves(ModelToHalf):
    "As `to_non_native_fp16`, which needs CUDA: the batch is in half precision, and so is the model until the fit ends"
    def before_batch(self): self.learn.xb = tuple(x.half() for x in self.xb)
    def after_pred(self): self.learn.pred = self.pred.float()

def test_half_precision(tmp_path):
    learn = learner(tmp_path, FoldCallback())
    learn.fit(1, cbs=Halves())
    assert learn.is_folded and len(learn.fold_report.folded)==4

def test_failed_fold_costs_nothing(tmp_path):
    "whatever happens in it, all is as it was, and the next training goes on"
    ends = []
    for cbs in [], [FoldCallback(refresh_bn=2)]:
        learn = learner(tmp_path, *cbs)
        def spoil(cb):
            if cbs: cbs[0].fold_xb,cbs[0].fold_others = (torch.zeros(2,5),),{}
        for _ in range(2):
            with warnings.catch_warnings(record=True) as ws:
                warnings.simplefilter('always')
                learn.fit(1, cbs=Callback(after_fit=spoil))
            if cbs: assert any('the model is trained, but was not folded: ' in str(o.message) for o in ws)
        assert not learn.is_folded
        ends.append(state(learn))
    same(*ends)

class Stepped(nn.Module):
    "Something in the model that goes wrong in training mode, after some calls"
    def __init__(self): super().__init__(); self.left = -1
    def forward(self, x):
        self.left -= self.training
        if not self.left: raise RuntimeError('broken')
        return x

@pytest.mark.parametrize('ends_in', [1,3,None])
def test_refresh_leaves_nothing(ends_in, tmp_path):
    """Statistics, momentum, modes, other buffers and random states are as they were, at once if it fails, else when
    unfolded"""
    body = nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3,8,3)), nn.BatchNorm2d(8, momentum=.3), nn.ReLU())
    model = nn.Sequential(body, nn.InstanceNorm2d(8, track_running_stats=True),
        nn.Sequential(nn.AvgPool2d(2), nn.Flatten()), nn.Linear(72,16), nn.BatchNorm1d(16), Stepped(), nn.Dropout(),
        nn.Linear(16,2))
    learn = learner(tmp_path, model=model)
    learn.fit(1)
    model[0].eval() # modes of its own
    norms = [model[0][1],model[4]]
    other = bits([b for n,b in model.named_buffers() if 'running' not in n and 'num' not in n])
    before,stats,objects = state(learn),bits([n.running_var for n in norms]),[n.running_var for n in norms]
    if ends_in:
        model[5].left = ends_in
        with pytest.raises(RuntimeError, match='broken'): learn.fold(refresh_bn=4)
        assert not learn.is_folded
    else:
        report = learn.fold(refresh_bn=4)
        assert len(report.folded)==2 and bits([n.running_var for n in norms])!=stats
        assert bits([b for n,b in model.named_buffers() if 'running' not in n and 'num' not in n])==other
    same(state(learn), before)
    assert all(a.running_var is b for a,b in zip(norms, objects))

def test_refresh_is_the_mean(tmp_path):
    """over all batches, each by itself, whatever the statistics were before; kept norms too, and wherever the model
    goes meanwhile"""
    model = nn.Sequential(nn.BatchNorm2d(3, momentum=.9), nn.ReLU(), Flatten(),
        nn.Linear(192,4), nn.BatchNorm1d(4), nn.Linear(4,2))
    nn.init.constant_(model[0].running_mean, 7)
    learn = learner(tmp_path, model=model)
    report = learn.fold(refresh_bn=4)
    xs = torch.stack([picture(i) for i in range(32)])
    assert [o.name for o in report.kept]==['0'] and model[0].num_batches_tracked==4
    assert torch.allclose(model[0].running_mean, xs.mean((0,2,3)), atol=1e-6)
    refreshed = bits(model[0].running_mean)
    learn.model.double()
    learn.save('m') # as trained
    assert torch.load(tmp_path/'models/m.pth', weights_only=False)['0.running_mean'].eq(7).all()
    assert learn.is_folded and bits(model[0].running_mean.float())==refreshed
    assert model[0].running_mean.dtype==torch.float64
    learn.unfold()
    assert model[0].running_mean.eq(7).all() and model[0].running_mean.dtype==torch.float64 and model[0].momentum==.9

def test_refresh_with_more_batches_than_there_are(tmp_path):
    learn = learner(tmp_path)
    learn.fold(refresh_bn=99)
    norm = learn.fold_report and learn._fold[0].changes[-1].old
    assert norm.num_batches_tracked==4

def test_refresh_without_data(tmp_path):
    learn = learner(tmp_path)
    learn.dls.loaders[0] = learn.dls.train.new(bs=99)
    before = state(learn)
    with pytest.raises(FoldError, match='no training data'): learn.fold(refresh_bn=2)
    same(state(learn), before)

def test_refresh_by_callback(tmp_path):
    "The same statistics each time, and as `learn.fold` takes them; training goes on from its own"
    plain,learn = learner(tmp_path),learner(tmp_path, FoldCallback(refresh_bn=3))
    for o in plain,learn:
        set_seed(1)
        o.fit(2)
    folded = bits(dict(learn.model.state_dict()))
    lr_find(learn)
    learn.fit(0)
    assert learn.is_folded and bits(dict(learn.model.state_dict()))==folded
    plain.fold(refresh_bn=3)
    assert bits(dict(plain.model.state_dict()))==folded
    assert len(learn.fold_report.folded)==4
    lr_find(plain)
    plain.fit(0)
    same(state(plain), state(learn))

def interpret(learn): return Interpretation.from_learner(learn).top_losses()[0]

uses = dict(validate=lambda l: l.validate(), get_preds=lambda l: l.get_preds()[0], tta=lambda l: l.tta(n=2)[0],
    predict=lambda l: l.predict(40)[2], with_loss=lambda l: l.get_preds(ds_idx=0, with_loss=True)[2],
    summary=lambda l: l.summary() and None, interpret=interpret,
    lr_find=lambda l: lr_find(l), nothing=lambda l: l.fit(0), skipped=lambda l: l.fit(2, start_epoch=2))

@pytest.mark.parametrize('cbs', [lambda: [], lambda: [SaveModelCallback()], lambda: [CSVLogger()]],
    ids=['plain','best','logged'])
@pytest.mark.parametrize('name', uses)
def test_use_never_folds_or_unfolds(name, cbs, tmp_path, capsys):
    "Same results, same random state afterwards, same training to follow; and what was trained stays what it was"
    if name=='skipped' and len(cbs()): pytest.skip('fastai fails there by itself')
    ends = []
    for more in [], [FoldCallback()]:
        learn = learner(tmp_path, *cbs(), *more)
        learn.fit(1)
        capsys.readouterr()
        res = uses[name](learn)
        assert learn.is_folded==bool(more) and 'norms folded' not in capsys.readouterr().out
        ends.append((res, state(learn)))
    (a,before),(b,after) = ends
    if a is not None:
        a,b = (torch.as_tensor(o, dtype=torch.float64) for o in (a, b))
        assert torch.allclose(a, b, atol=1e-5)
    for o in before,after: o.pop('epochs') # it holds results of the use itself, which differ by rounding
    same(before, after)

def test_optimizer_made_while_folded(tmp_path):
    learn = learner(tmp_path)
    learn.fold()
    learn.freeze() # makes an optimizer
    assert learn.is_folded
    learn.unfreeze()
    before = [p.clone() for p in learn.unfold().model.parameters()]
    learn.fit(1)
    assert not any(torch.equal(a, b) for a,b in zip(before, learn.model.parameters()) if a.ndim>1)

def test_copied_while_folded(tmp_path):
    "A copy of a folded learner is folded, and unfolds by itself"
    learn = learner(tmp_path, FoldCallback())
    learn.fit(1)
    other = deepcopy(learn)
    assert other.is_folded and learn.is_folded
    weights = bits(dict(learn.unfold().model.state_dict()))
    assert other.is_folded and bits(dict(other.unfold().model.state_dict()))==weights

def test_modes(tmp_path):
    "A fit that is cancelled in a batch leaves the model in training mode, and so does folding it"
    modes = []
    for cbs in [], [FoldCallback()]:
        learn = learner(tmp_path, *cbs)
        learn.fit(1, cbs=StopIn(CancelFitException('stop')))
        modes.append(learn.model.training)
    assert modes==[True,True]

def test_plain_answers(tmp_path, capsys):
    "Folding or unfolding twice, or what has no norms, does no harm and says nothing but the report"
    learn = learner(tmp_path)
    assert not learn.is_folded and learn.fold_report is None and learn.unfold() is learn.unfold() is learn
    assert learn.fold() is learn.fold() is learn.fold_report and learn.is_folded
    assert learn.unfold() is learn.unfold() is learn and not learn.is_folded
    bare = learner(tmp_path, FoldCallback(), model=nn.Sequential(Flatten(), nn.Linear(192,2)))
    assert str(bare.fold())=='no norms to fold, 386 parameters' and not bare.is_folded and bare.fold() is not None
    assert not bare.unfold().fold(refresh_bn=2).rows
    assert not capsys.readouterr().out
    bare.logger = print
    bare.fit(1)
    assert 'norms' not in capsys.readouterr().out and not bare.is_folded
    assert str(bare.fold_report)=='no norms to fold, 386 parameters'

def test_headline(tmp_path, capsys):
    "One line where training tells of itself, none where it doesn't"
    def told(log, f=lambda l: l.fit(1)):
        learn = learner(tmp_path, FoldCallback())
        learn.logger = log
        f(learn)
        assert learn.is_folded
        return '4 of 4 norms folded, ' in capsys.readouterr().out
    def unlogged(learn):
        with learn.no_logging(): learn.fit(1)
    assert told(print) and not told(noop) and not told(print, unlogged)
