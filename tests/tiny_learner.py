"A learner that trains in a moment, and all of it that training may change. A test file can't be imported by others"
import random, warnings
import numpy as np, torch
from torch import nn
with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    from fastai.vision.all import (AvgPool, ConvLayer, CrossEntropyLossFlat, Datasets, Learner, LinBnDrop,
        ProgressCallback, accuracy, noop, set_seed)

__all__ = ['bits', 'label', 'learner', 'network', 'OwnFit', 'picture', 'same', 'state'] # what tests take from here

def picture(i): return torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(i))
def label(i): return i%2

def network():
    "Two norms in the body, which go back, and two in the head, which go ahead"
    return nn.Sequential(ConvLayer(3,8), ConvLayer(8,8,stride=2), AvgPool(), nn.Flatten(),
        LinBnDrop(32,8,p=.5,act=nn.ReLU()), LinBnDrop(8,2,p=.5))

def learner(path, *cbs, model=None, picture=picture, device='cpu'):
    set_seed(42)
    dsets = Datasets(range(48), [[picture],[label]], splits=(list(range(32)), list(range(32,48))))
    dls = dsets.dataloaders(bs=8, device=device, num_workers=0)
    if model is None: model = network()
    learn = Learner(dls, model, loss_func=CrossEntropyLossFlat(), metrics=accuracy, path=path, cbs=list(cbs))
    learn.logger = noop
    return learn.remove_cbs([ProgressCallback])

class OwnFit(Learner):
    "Has a `fit` of its own"
    def fit(self, n_epoch, lr=None, wd=None, cbs=None, reset_opt=False, start_epoch=0):
        with self.added_cbs(cbs):
            if not self.opt: self.create_opt()
            self.opt.set_hypers(lr=self.lr)
            self.n_epoch = n_epoch
            self('before_fit')
            for self.epoch in range(n_epoch):
                self('before_epoch')
                self.dl = self.dls.train
                self('before_train')
                self.all_batches()
                self('after_train')
                self('after_epoch')
            self('after_fit')

def bits(o):
    "`o` in a form that `==` compares bit by bit: NaN is equal to itself, and 0. isn't -0."
    if isinstance(o, torch.Tensor):
        data = o.detach().cpu().contiguous().flatten().view(torch.uint8)
        return o.dtype,o.shape,data.numpy().tobytes()
    if isinstance(o, np.ndarray): return o.tobytes()
    if isinstance(o, dict): return {k:bits(v) for k,v in o.items()}
    return [bits(v) for v in o] if isinstance(o, (list,tuple)) else o

def state(learn):
    """All that training has made, and all that it goes on from: weights, statistics, gradients, optimizer, modes,
    random states"""
    model,opt = learn.unfold().model,learn.opt
    moments = [[opt.state.get(p, {}) for p in g] for g in opt.param_lists] if opt else None
    return bits(dict(weights=dict(model.state_dict()), grads=[p.grad for p in model.parameters()],
        trains=[p.requires_grad for p in model.parameters()], modes=[m.training for m in model.modules()],
        momenta=[getattr(m, 'momentum', None) for m in model.modules()], moments=moments,
        hypers=[dict(o) for o in opt.hypers] if opt else None, epochs=vars(learn.recorder).get('values'),
        random=random.getstate(), numpy=np.random.get_state(),
        torch=torch.get_rng_state(), loaders=[o.rng.getstate() for o in learn.dls.loaders if hasattr(o, 'rng')]))

def same(a, b):
    "Compare two states, and name what differs"
    if wrong := [k for k in {**a, **b} if a.get(k, a)!=b.get(k, b)]: raise AssertionError(f'{wrong} differ')
