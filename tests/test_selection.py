"""Norms and layers chosen by name: what a pattern means, what it leaves alone, and slips that must not pass. And shared
layers that are copied per use. In float64, to 1e-9, without verification"""
import pytest, torch
from torch import nn
from fastfold.cli import main
from fastfold.core.refusals import FoldError
from fastfold.folder import BN_Folder
from random_nets import difference, live
from test_merge import batch, Block, check_same, conv, images, normed, state, tensors

def fold(model, x=images, others=(), inplace=False, more=(), **options):
    "Fold `model`, made live, see that it computes the same and that undo leaves every bit; returns the report"
    live(model)
    xs,before,folder = [x, *more],state(model),BN_Folder(**dict(verify=False) | options)
    want = [tensors(model, o) for o in xs]
    plan = folder.plan(model, x, others=others)
    folded = folder.fold(model, x, others=others, inplace=inplace)
    assert plan==folder.report
    for o,w in zip(xs, want): assert difference(w, tensors(folded, o))<1e-9, str(folder.report)
    if inplace: folder.unfold()
    check_same(before, state(model))
    return folder.report

def went(report): return [o.name for o in report.folded]
def reasons(report): return {o.name:o.reason for o in report.kept}

def net():
    return nn.Sequential(normed(conv()), nn.ReLU(), normed(conv(k=1)), nn.ReLU(), normed(conv(), conv(k=1))).double()
all_norms = ['0.1', '2.1', '4.2']

# slips

@pytest.mark.parametrize('option', ['only', 'skip'])
@pytest.mark.parametrize('given', ['5', '*.bn', ['0', 'two'], '0.1.1', ['0.1.weigth']])
def test_nothing_named(option, given):
    with pytest.raises(FoldError, match=f"'{option}' has '.*', which names no norm.*such as "):
        BN_Folder(**{option: given}).fold(net(), images)

def test_closest():
    model = nn.ModuleDict(dict(backbone=net(), head=normed(conv()))).double()
    model.forward = lambda x: model['head'](model['backbone'](x))
    with pytest.raises(FoldError, match="'bakbone.*'.*'backbone'"): BN_Folder(only='bakbone.*').plan(model, images)
    with pytest.raises(FoldError, match="'haed.0'.*'head.0'"): BN_Folder(skip='haed.0').plan(model, images)

@pytest.mark.parametrize('option', ['only', 'skip'])
@pytest.mark.parametrize('given', [3, [3], '', ['0', ''], dict(a=1), nn.Conv2d, [nn.Conv2d]])
def test_no_patterns(option, given):
    with pytest.raises(FoldError, match=f"'{option}' is .*give a pattern"): BN_Folder(**{option: given})

def test_only_nothing():
    "An empty list chooses nothing, which nobody wants"
    with pytest.raises(FoldError, match="'only' is empty"): BN_Folder(only=[])
    assert went(fold(net(), skip=[]))==all_norms

def test_only_names_a_layer():
    "`only` is about norms: a layer, or a block without any, has none to choose"
    with pytest.raises(FoldError, match="'0.0', which names no norm"): BN_Folder(only='0.0').plan(net(), images)

def test_no_norms():
    with pytest.raises(FoldError, match='names no norm: give'): BN_Folder(only='0').plan(nn.Sequential(conv()), images)

# what is chosen

@pytest.mark.parametrize('inplace', [False, True])
@pytest.mark.parametrize('only,names', [('*', all_norms), ('0', ['0.1']), ('0.1', ['0.1']), ('*.2', ['4.2']),
    (['0.*','2'], ['0.1','2.1']), ('[02].1', ['0.1','2.1']), (('4.?','0'), ['0.1','4.2']), ('2*', ['2.1'])])
def test_only(only, names, inplace):
    report = fold(net(), only=only, inplace=inplace)
    assert went(report)==names
    assert set(reasons(report).values())<={'`only` leaves it out'}

@pytest.mark.parametrize('skip,names', [('*', []), ('0', ['2.1','4.2']), ('0.1', ['2.1','4.2']), ('*.2', ['0.1','2.1']),
    (['0','2'], ['4.2']), ('1', all_norms), ('4.0', all_norms)])
def test_skip(skip, names): assert went(fold(net(), skip=skip))==names

def test_skip_says(): assert reasons(fold(net(), skip=['0.1','2']))=={k:f"`skip` names '{k}'" for k in ('0.1', '2.1')}

def test_skipped_layer():
    "A layer that is skipped stays as it is; its norm may go the other way"
    report = fold(net(), skip=['0.0'])
    assert went(report)==['2.1', '4.2'] and reasons(report)['0.1'].startswith("`skip` names '0.0', and")
    both = nn.Sequential(conv(), nn.BatchNorm2d(4), conv())
    assert fold(both, skip='0').folded[0].into==['2'] and fold(both, skip='2').folded[0].into==['0']
    assert not went(fold(both, skip=['0','2']))

def test_similar_names():
    "layer1 isn't layer10, and a name counts from the start"
    model = nn.Sequential(*[normed(conv(4, 4, 1)) for _ in range(12)])
    assert went(fold(model, only='1'))==['1.1']
    assert len(went(fold(model, skip='1')))==11

def test_only_and_skip(): assert went(fold(net(), only=['0','2'], skip='2.0'))==['0.1']

def test_shared():
    "One module under two names is meant by both"
    one = normed(conv())
    model = Block(lambda m,x: m.b(m.a(x)), a=one, b=one)
    assert went(fold(model, only='b'))==['a.1'] and went(fold(model, only='a'))==['a.1']
    for name in 'a','b','b.0','a.1': assert not went(fold(model, skip=name)), name

def test_tied_to_skipped():
    "A parameter that a skipped layer has, too, doesn't change"
    a,b = conv(bias=False),conv(bias=False)
    b.weight = a.weight
    bn = nn.BatchNorm2d(4)
    model = Block(lambda m,x: m.bn(m.a(x)) + m.bn(m.b(x)), a=a, b=b, bn=bn)
    assert went(fold(model))==['bn']
    assert not went(fold(model, skip='b')) and not went(fold(model, skip='a'))

def test_one_norm_two_homes():
    "All layers that a norm goes into must be free"
    model = Block(lambda m,x: m.bn(m.a(x) + m.b(x)), a=conv(), b=conv(), bn=nn.BatchNorm2d(4))
    assert went(fold(model))==['bn'] and not went(fold(model, skip='b'))

def test_factors():
    "Parameters that a forward multiplies with have names, too"
    def made(): return nn.Sequential(Block(lambda m,x: m.g*m.bn(m.conv(x)), conv=conv(), bn=nn.BatchNorm2d(4),
        g=nn.Parameter(torch.rand(4, 1, 1)+.5)), nn.Identity())
    def names(**options): return went(fold(made(), layer_scale=True, **options))
    assert names()==['0.bn', '0.g'] and names(only='0.bn')==['0.bn'] and names(skip='*.g')==['0.bn']
    assert names(skip='0')==[]
    with pytest.raises(FoldError, match='names no norm'): names(only='0.conv')

def test_merge():
    "What isn't chosen isn't merged either"
    def made(): return nn.Sequential(Block(lambda m,x: m.a(x) + m.b(x), a=normed(conv(padding=1)), b=normed(conv(k=1))),
        nn.ReLU(), Block(lambda m,x: m.a(x) + m.b(x), a=normed(conv(padding=1)), b=normed(conv(k=1))))
    def places(**options): return [o.name for o in fold(made(), merge=True, **options).merged]
    assert places()==['0.conv_merged', '2.conv_merged'] or len(places())==2
    assert len(places(only='0'))==1 and len(places(skip='2.b.0'))==1 and len(places(skip=['0.a.1','2']))==0

def test_verified():
    "In the same way in float32, with comparison"
    model = live(net()).float()
    for options in dict(only='0'),dict(skip=['2','4.0']):
        folder = BN_Folder(**options)
        new = folder.fold(model, images.float())
        assert torch.allclose(new(images.float()), model(images.float()), atol=1e-4) and folder.report.max_err<1e-4

def test_loaded():
    "What was folded in part is loaded like any fold"
    model = live(net())
    new = BN_Folder(only=['0','4']).fold(model, images)
    again = BN_Folder().load(net().eval(), new.state_dict())
    assert torch.equal(again(images), new(images)) and isinstance(again[2][1], nn.BatchNorm2d)

def test_learner(tmp_path):
    "Learners, callbacks and the command line hand the options on"
    from fastfold.learner import FoldCallback
    from tiny_learner import learner
    learn = learner(tmp_path)
    names = went(learn.fold())
    assert went(learn.fold(only=names[0]))==names[:1] and went(learn.fold(skip=names[0]))==names[1:]
    with pytest.raises(FoldError, match='names no norm'): learn.fold(only='no such')
    FoldCallback(only=names[0])
    with pytest.raises(FoldError, match="'only' is 3"): FoldCallback(only=3)

def test_cli(tmp_path, capsys):
    layers = nn.Conv2d(3, 4, 3),nn.BatchNorm2d(4),nn.ReLU(),nn.Conv2d(4, 3, 3),nn.BatchNorm2d(3)
    torch.save(nn.Sequential(*layers).eval(), tmp_path/'model.pth')
    (tmp_path/'model.pth').chmod(0o600)
    file,out = str(tmp_path/'model.pth'),str(tmp_path/'out.pkl')
    assert main(['fold', file, '--out', out, '--only', '1', '--only', '7'])==1
    assert "'only' has '7'" in capsys.readouterr().err
    assert main(['fold', file, '--out', out, '--only', '1'])==0
    assert '1 of 2 norms folded' in capsys.readouterr().out
    assert main(['fold', '--force', '--skip', '[13]', '--skip', '4', file, '--out', out])==0
    assert '0 of 2 norms folded' in capsys.readouterr().out

def test_input_norm():
    "The normalization of the data goes into no layer that is skipped; `only` is about the norms of the model"
    from fastfold.training.input_norm import InputNorm
    from fastfold.training.normalize import fold_norm, place_of
    norm = InputNorm(batch(4), batch(4).abs()+.1, -3)
    def into(**options): return place_of(fold_norm(BN_Folder(**options), norm, live(net()), [images], None, [0])).into
    assert into()==into(only='2')==into(skip='2')==['0.0']
    assert into(skip='0')==into(skip='*.0')==[]
