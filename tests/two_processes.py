"""What `torchrun` runs in each process for test_distributed.py: trainings that end in several ways, and what became of
them, as JSON in the directory given"""
import contextlib, faulthandler, hashlib, io, json, sys, warnings
from datetime import timedelta
from pathlib import Path
warnings.filterwarnings('ignore')
import torch
import torch.distributed as dist
from torch import nn
from accelerate import InitProcessGroupKwargs
from fastai.callback.progress import ProgressCallback
from fastai.distributed import DistributedDL
from fastai.vision.all import (Callback, CancelFitException, CrossEntropyLossFlat, Datasets, Learner, LongTensor,
    Normalize, TensorImage, get_model, imagenet_stats, rank_distrib, set_seed)
from fastfold.all import FoldCallback

faulthandler.dump_traceback_later(100, exit=True) # whatever waits for ever
torch.set_num_threads(1)

def broadcast(self, t, rank):
    "As in fastai, but on the CPU"
    t = LongTensor(t)
    dist.broadcast(t, rank)
    return t.tolist()
DistributedDL._broadcast = broadcast

def picture(i): return TensorImage(torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(i)))
def label(i): return i%2

def silent(values): "Say nothing of the training itself"

def learner(*cbs):
    "Two norms that go back, one that stays, and one that goes ahead"
    set_seed(42)
    dsets = Datasets(range(48), [[picture],[label]], splits=(list(range(32)), list(range(32,48))))
    dls = dsets.dataloaders(bs=8, device='cpu', num_workers=0,
        after_batch=[Normalize.from_stats(*imagenet_stats, cuda=False)])
    model = nn.Sequential(nn.Conv2d(3,4,3,bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4,4,3), nn.BatchNorm2d(4), nn.ReLU(), nn.BatchNorm2d(4), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4,2))
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), path=Path(sys.argv[1]), cbs=list(cbs))
    learn.logger = silent
    return learn.remove_cbs([ProgressCallback])

def shared(learn):
    handlers = [InitProcessGroupKwargs(backend='gloo', timeout=timedelta(seconds=60))]
    return learn.distrib_ctx(sync_bn=False, cpu=True, kwargs_handlers=handlers) # SyncBatchNorm trains on the GPU only

def digest(tensors):
    return hashlib.sha256(b''.join(t.detach().contiguous().numpy().tobytes() for t in tensors)).hexdigest()
def outputs(learn):
    "For what the loaders give"
    x, = learn.dls.test_dl(range(4)).one_batch()
    with torch.no_grad(): return get_model(learn.model).eval()(x)

def outcome(learn):
    "What is to be the same in all processes, and what the trained model makes of the same pictures"
    report,folded,out = learn.fold_report,learn.is_folded,outputs(learn)
    params,state = list(learn.model.parameters()),learn.model.state_dict().values()
    std = learn.dls.valid.after_batch.fs[-1].std.flatten().tolist()
    err = (out - outputs(learn.unfold())).abs().max().item()
    return dict(folded=folded, rows=[r.name for r in report.folded] if report else None,
        params=digest(params), state=digest(state), std=std,
        trained=digest(learn.model.state_dict().values()), err=err)

class AtEnd(Callback):
    "Do `f` to the learner when all else is done, but for folding"
    order = 90
    def __init__(self, f): self.f = f
    def after_fit(self): self.f(self.learn)

class StopIn(Callback):
    def __init__(self, error): self.error = error
    def after_batch(self):
        if self.training and self.iter==1: raise self.error

def fit(n=1, cbs=(), **options):
    learn = learner(FoldCallback(**options), *cbs)
    with shared(learn): learn.fit(n)
    return learn

def spoil(learn):
    if rank_distrib(): learn.fold_callback.fold_xb,learn.fold_callback.fold_others = (torch.zeros(2, 5),),{}
def hook(learn):
    if rank_distrib(): learn.model[3].register_forward_hook(noop_hook)
def noop_hook(*args): pass
def to_sync(learn): nn.SyncBatchNorm.convert_sync_batchnorm(learn.model)

def exported():
    learn = fit()
    learn.export()
    dist.barrier()
    return dict(files=sorted(o.name for o in learn.path.glob('*.pkl*')), **outcome(learn))

def trained_on():
    "twice, with predictions by all processes between, against the same without fastfold"
    ends = []
    for cbs in [FoldCallback(normalize=True)],[]:
        learn = learner(*cbs)
        for _ in range(2):
            with shared(learn):
                learn.fit(1)
                preds = learn.get_preds()[0]
            assert learn.is_folded==bool(cbs)
        ends.append((digest(learn.unfold().model.state_dict().values()), preds))
    return dict(same=ends[0][0]==ends[1][0], preds=(ends[0][1]-ends[1][1]).abs().max().item())

def interrupted():
    learn = learner(FoldCallback())
    with contextlib.suppress(KeyboardInterrupt), shared(learn): learn.fit(1, cbs=StopIn(KeyboardInterrupt('stop')))
    wrapped,loader,folded = type(learn.model).__name__,type(learn.dls.valid).__name__,learn.is_folded
    x,model = torch.rand(2,3,8,8),get_model(learn.model).eval()
    with torch.no_grad():
        before = model(x)
        report = learn.fold()
        err = (model(x)-before).abs().max().item()
        return dict(wrapped=wrapped, loader=loader, before=folded, after=learn.is_folded, n=len(report.folded),
            err=err)

def alone():
    "each process with a learner of its own, of which only one folds"
    learn = learner(*[FoldCallback()]*(not rank_distrib()))
    learn.fit(1)
    return dict(folded=learn.is_folded)

scenarios = dict(
    fit=lambda: outcome(fit(2)), normalize=lambda: outcome(fit(normalize=True)),
    cancelled=lambda: outcome(fit(cbs=[StopIn(CancelFitException('stop'))])),
    sync=lambda: outcome(fit(cbs=[AtEnd(to_sync)])), fails=lambda: outcome(fit(cbs=[AtEnd(spoil)])),
    differs=lambda: outcome(fit(cbs=[AtEnd(hook)])),
    exported=exported, trained_on=trained_on, interrupted=interrupted, alone=alone)

res = {}
for name,f in scenarios.items():
    with warnings.catch_warnings(record=True) as ws, contextlib.redirect_stdout(io.StringIO()) as printed:
        warnings.simplefilter('always')
        res[name] = f()
        told = [str(o.message) for o in ws if 'fold' in str(o.message)]
        res[name].update(printed=printed.getvalue().strip(), warnings=told)
(Path(sys.argv[1])/f'{rank_distrib()}.json').write_text(json.dumps(res))
dist.barrier()
dist.destroy_process_group()
