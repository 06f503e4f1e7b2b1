"""Identities that a fold has left, taken out: only where nobody can miss them, and with the same results. In float64,
to 1e-9, without verification"""
from collections import Counter
import pytest, timm, torch, torchvision
from torch import fx, nn
from fastfold.core.refusals import FoldError
from fastfold.folder import BN_Folder
from fastfold.identities import drop_identities, left_by
from random_nets import difference, live

def folded(model, *xb, **kwargs):
    "The model with random numbers, folded, and the report"
    torch.manual_seed(0)
    model = live(model).double().eval()
    folder = BN_Folder(verify=False, **kwargs)
    return model,folder.fold(model, *xb),folder.report

def image(n=2, size=16): return torch.randn(n, 3, size, size, dtype=torch.float64)
def layers(): return [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)]
def n_identities(model): return sum(type(m) is nn.Identity for m in model.modules())

def check(model, new, *batches):
    with torch.no_grad():
        for x in batches: assert difference(new(x), model(x))<1e-9

# what must stay

class Indexes(nn.Module):
    "What it calls depends on the places in its Sequential"
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(*layers())
    def forward(self, x):
        for i,m in enumerate(self.layers):
            x = m(x)*2 if i==2 else m(x)
        return x

class Holds(nn.Module):
    "Calls what is registered elsewhere"
    def __init__(self, other):
        super().__init__()
        self.others = [other]
    def forward(self, x): return self.others[0][2](x)

class OwnForward(nn.Sequential):
    def forward(self, x):
        for i,m in enumerate(self): x = m(x)*(1+i)
        return x

@pytest.mark.parametrize('make', [Indexes, lambda: OwnForward(*layers())])
def test_root_with_a_forward(make):
    "It could ask for its layers by place or name"
    _,new,report = folded(make(), image())
    assert len(report.folded)==2
    with pytest.raises(FoldError, match='trace it first'): drop_identities(new, report)
    assert n_identities(new)==2

@pytest.mark.parametrize('make', [Indexes, lambda: OwnForward(*layers())])
def test_inside_of_a_forward(make):
    "So could one further inside"
    x = image()
    model,new,report = folded(nn.Sequential(make(), nn.ReLU()), x)
    less = drop_identities(new, report)
    assert n_identities(less)==n_identities(new)==2
    check(model, less, x, image(3, 9))

def test_held_elsewhere():
    "Or one that holds on to the Sequential of another"
    first = nn.Sequential(*layers())
    x = image()
    model,new,report = folded(nn.Sequential(first, Holds(first)), x)
    less = drop_identities(new, report)
    assert n_identities(less)==n_identities(new)
    check(model, less, x)

def test_registered_twice():
    "In a Sequential, and in a module that picks"
    first = Indexes()
    x = image()
    model,new,report = folded(nn.Sequential(first.layers, nn.Sequential(nn.Conv2d(4, 3, 1), first)), x)
    less = drop_identities(new, report)
    assert n_identities(less)==n_identities(new)
    check(model, less, x)

def test_own_identities():
    x = image()
    model,new,report = folded(nn.Sequential(nn.Identity(), *layers(), nn.Identity()), x)
    for less in drop_identities(new, report),drop_identities(fx.symbolic_trace(new), report):
        assert n_identities(new)==4 and n_identities(less)==2
        check(model, less, x, image(3, 9))

def test_hooks():
    "Somebody is told when it runs"
    x,seen = image(),[]
    model,new,report = folded(nn.Sequential(*layers()), x)
    new[1].register_forward_hook(lambda m,i,o: seen.append(o))
    for less in drop_identities(new, report),drop_identities(fx.symbolic_trace(new), report):
        assert n_identities(less)==1
        seen.clear()
        check(model, less, x)
        assert len(seen)==1

def test_norm_put_back():
    "What has come in the place of an Identity since is none of the fold's"
    _,new,report = folded(nn.Sequential(*layers()), image())
    new[1] = nn.BatchNorm2d(4).double().eval()
    assert left_by(report, new)=={'4'}

def test_kept_norms():
    x = image()
    model,new,report = folded(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU(), *layers()), x)
    assert [o.name for o in report.kept]==['1']
    less = drop_identities(new, report)
    assert type(less[1]) is nn.BatchNorm2d and n_identities(less)==0
    check(model, less, x)

class Leaves(fx.Tracer):
    "Calls the modules of some names as a whole"
    def __init__(self, *names):
        super().__init__()
        self.names = names
    def is_leaf_module(self, m, name): return name in self.names or super().is_leaf_module(m, name)

class CallsBoth(nn.Module):
    "Calls a module, and a part of that by itself"
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(*layers())
    def forward(self, x):
        y = self.body[1](self.body[0](x))
        return self.body(x).mean((1,2,3)) + y.mean((1,2,3))

def test_part_of_a_leaf():
    "A graph that calls a module as a whole doesn't say what it does with its parts"
    x = image()
    model,new,report = folded(CallsBoth(), x)
    graph = fx.GraphModule(new, Leaves('body').trace(new))
    less = drop_identities(graph, report)
    assert n_identities(less)==n_identities(graph)>0 # the call is gone, the module stays
    check(model, less, x, image(3, 9))

# what is taken out

def test_sequence():
    x = image()
    net = nn.Sequential(nn.Sequential(*layers()), nn.Sequential(nn.Sequential(nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3))))
    model,new,report = folded(net, x)
    before = {k:v.clone() for k,v in new.state_dict().items()}
    less = drop_identities(new, report)
    assert n_identities(new)==3 and n_identities(less)==0
    assert before.keys()==less.state_dict().keys()==new.state_dict().keys()
    check(model, less, x, image(3, 9))
    check(model, new, x)

def test_only_a_norm_inside():
    "A Sequential with nothing left in it returns its input"
    x = image()
    model,new,report = folded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sequential(nn.BatchNorm2d(4))), x)
    less = drop_identities(new, report)
    assert len(less[1])==0
    check(model, less, x)

def test_at_the_end_of_a_graph():
    "The Identity is what the graph returns"
    x = image()
    model,new,report = folded(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), x)
    less = drop_identities(fx.symbolic_trace(new), report)
    assert n_identities(less)==0
    check(model, less, x, image(3, 9))

class Twice(nn.Module):
    "One norm, two calls"
    def __init__(self):
        super().__init__()
        self.conv,self.bn = nn.Conv2d(3, 4, 3),nn.BatchNorm2d(4)
    def forward(self, x):
        a,b = self.conv(x).chunk(2)
        return torch.cat([self.bn(a), self.bn(b)])

def test_several_calls():
    x = image(4)
    model,new,report = folded(Twice(), x)
    assert report.folded
    less = drop_identities(fx.symbolic_trace(new), report)
    assert n_identities(less)==0
    check(model, less, x, image(2, 9))

@pytest.mark.parametrize('name', ['resnet18', 'mobilenet_v2', 'vgg11_bn', 'shufflenet_v2_x0_5', 'googlenet'])
def test_traced(name):
    x,kwargs = image(2, 64),dict(init_weights=False, aux_logits=False) if name=='googlenet' else {}
    model,new,report = folded(getattr(torchvision.models, name)(**kwargs), x)
    graph = fx.symbolic_trace(new)
    less = drop_identities(graph, report)
    was,now = (Counter(n.op for n in o.graph.nodes)['call_module'] for o in (graph, less))
    assert was-now==len(report.folded)==n_identities(graph)-n_identities(less)
    check(model, less, x, image(3, 64), image(1, 96))

def test_leaves_an_activation():
    "timm's norms become their activation, which stays"
    x = image(2, 64)
    model,new,report = folded(timm.create_model('mobilenetv3_small_050'), x)
    less = drop_identities(fx.symbolic_trace(new), report)
    assert len(report.folded)==34 and not left_by(report, less)
    check(model, less, x, image(3, 96))

def test_merged():
    "Layers that are one now, in forwards that are graphs already"
    x = image(2, 64)
    model,new,report = folded(timm.create_model('repvgg_a0'), x, merge=True)
    assert report.merged
    less = drop_identities(fx.symbolic_trace(new), report)
    assert not left_by(report, less)
    check(model, less, x, image(3, 96))

def test_fastai_body():
    "What a `vision_learner` makes is a Sequential of Sequentials, with the blocks of a ResNet in it"
    from fastai.vision.learner import create_vision_model
    x = image(2, 64)
    model,new,report = folded(create_vision_model(torchvision.models.resnet18, 2, pretrained=False), x)
    less = drop_identities(new, report)
    gone = left_by(report, new)-left_by(report, less)
    assert {'0.1'} <= gone and all('.' not in n.replace('0.', '', 1).replace('1.', '', 1) for n in gone)
    check(model, less, x, image(3, 96))
