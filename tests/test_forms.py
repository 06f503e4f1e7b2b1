"""The lines that `benchmark` and `learn.fold_bench` end in can be pasted as they stand, and give what was timed. A
notebook shows it for one network; here are those that differ in their inputs and weights"""
import warnings
import pytest
import torch
from torch import nn
from fastfold.folder import BN_Folder
from fastfold.lab.bench import benchmark
from fastfold.lab.forms import FORMS, for_inputs, make_forms
import fastfold.learner # noqa: F401, gives `Learner` its methods
from tiny_learner import learner

class TwoInputs(nn.Module):
    "A picture, and the number of a class whose vector is added to it"
    def __init__(self):
        super().__init__()
        self.conv,self.norm,self.vectors = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Embedding(4, 8)
    def forward(self, x, i): return self.norm(self.conv(x)) + self.vectors(i)[:,:,None,None]

def picture_net():
    depthwise = nn.Conv2d(8, 8, 3, groups=8)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), depthwise, nn.BatchNorm2d(8))

def row_net(): return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
def volume_net(): return nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.ReLU())

nets = {
    'pictures': (picture_net, (torch.randn(2, 3, 10, 10),)),
    'two inputs': (TwoInputs, (torch.randn(2, 3, 10, 10), torch.tensor([1, 3]))),
    'rows': (row_net, (torch.randn(4, 6),)),
    'volumes': (volume_net, (torch.randn(2, 3, 6, 6, 6),)),
}
forms = [o for o in FORMS if o!='compile']

def made(make):
    "The network in evaluation, with random numbers in its norms too"
    torch.manual_seed(0)
    model = make().eval()
    for m in model.modules():
        if hasattr(m, 'running_var'):
            for t in (m.running_mean, m.running_var, m.weight, m.bias): nn.init.uniform_(t, .5, 1.5)
    return model

@pytest.mark.parametrize('name', nets)
@torch.no_grad()
def test_lines(name):
    "What a line gives is what is timed under its name, and what the original gives"
    make,xs = nets[name]
    model = made(make)
    ready,failed = make_forms(dict(original=model, folded=BN_Folder().fold(model, *xs)), forms, xs)
    is_picture = name in ('pictures', 'two inputs')
    assert set(failed)==(set() if is_picture else {'original, channels_last', 'folded, channels_last', 'bfloat16'})
    want = model(*xs)
    for form,(call,inputs) in ready.items():
        scope = dict(torch=torch, BN_Folder=BN_Folder, model=made(make), xb=xs if len(xs)>1 else xs[0])
        with warnings.catch_warnings():
            warnings.simplefilter('ignore') # tracing warns of what it is
            exec(for_inputs(FORMS[form].line, len(xs)), scope)
        batch = scope['xb'] if len(xs)>1 else [scope['xb']]
        out = scope['model'](*batch)
        assert torch.equal(out, call(*inputs)), form
        assert (out.float()-want).abs().max()<(.05 if form=='bfloat16' else 1e-5)*want.abs().max(), form

def test_model_is_left_alone():
    "Weights, memory format and flags are what they were"
    make,xs = nets['pictures']
    model = made(make)
    model[1].train()
    flags,state = [o.training for o in model.modules()], {k:v.clone() for k,v in model.state_dict().items()}
    res = benchmark(model, xs[0], batch_sizes=(1,3), rounds=1, min_time=0., forms=forms)
    assert [o.training for o in model.modules()]==flags
    assert all(torch.equal(v, state[k]) for k,v in model.state_dict().items()) and model[0].weight.is_contiguous()
    assert [o.model for o in res.rows]==2*forms and not res.failed

def test_what_cannot_run_is_left_out():
    "With its reason, and without a row, in the table and in HTML"
    make,xs = nets['rows']
    res = benchmark(made(make), xs, batch_sizes=(2,), rounds=1, min_time=0., forms=['folded', 'folded, channels_last'])
    assert [o.model for o in res.rows]==['original', 'folded']
    told = 'left out: folded, channels_last (ValueError: no weight has four dimensions)'
    assert told in str(res) and told in res._repr_html_() and ' here with a batch of 2' in str(res)

def test_original_that_fails_is_no_form():
    make,xs = nets['pictures']
    model = made(make)
    with pytest.raises(RuntimeError): benchmark(dict(original=model, folded=model), xs[0][:,:2], rounds=1)

@pytest.mark.parametrize('form', [o for o in forms if 'model = ' not in FORMS[o].on_learner])
def test_learner(tmp_path, form):
    "Each line for a learner leaves one that predicts and unfolds"
    learn = learner(tmp_path)
    learn.fit(1)
    state,(want,_) = {k:v.clone() for k,v in learn.model.state_dict().items()}, learn.get_preds()
    res = learn.fold_bench(batch_sizes=(2,), rounds=1, min_time=0., forms=[form])
    assert not learn.is_folded
    exec(res.lines[form], dict(learn=learn, torch=torch))
    assert (learn.get_preds()[0]-want).abs().max()<1e-5
    learn.unfold()
    assert all(torch.equal(v, state[k]) for k,v in learn.model.state_dict().items())
    learn.fit(1)

def test_learner_models(tmp_path):
    "The other lines give a model of its own"
    learn = learner(tmp_path)
    learn.fit(1)
    xb = learn.dls.valid.one_batch()[0]
    with torch.no_grad():
        want = learn.model.eval()(xb)
        for name in [o for o in forms if 'model = ' in FORMS[o].on_learner]:
            scope = dict(learn=learn, torch=torch, BN_Folder=BN_Folder, xb=xb)
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                exec(FORMS[name].on_learner, scope)
            assert (scope['model'](scope['xb']).float()-want).abs().max()<.05*want.abs().max()
