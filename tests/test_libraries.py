"""One network of each library that is installed, and what is said of those that aren't. Which ones are there differs
from machine to machine, so a notebook can't rely on any of them"""
import sys
from importlib.util import find_spec
import pytest
from fastfold.cli import main
from fastfold.lab.libraries import LIBRARIES, Library, Source, choose, find_source, random_batch
from fastfold.lab.models import prepare, quiet
from fastfold.lab.trials import fold_fastfold, norm_ops, trial

# a small one of each, and another name that there isn't
networks = dict(torchvision='quantized_mobilenet_v2', timm='tf_mobilenetv3_small_minimal_100', transformers='Detr',
    ultralytics='yolov8n-cls.yaml', smp='Unet/mobilenet_v2', pyg='GIN', speechbrain='Xvector', mmcv='SyncBN',
    monai='BasicUNet', pytorchcv='resnet10', tsai='InceptionTime', tabnet='TabNetNoEmbeddings',
    efficientnet_pytorch='efficientnet-b0')

def test_each_is_tried(): assert {*networks}=={*LIBRARIES}

@pytest.mark.parametrize('library', networks)
def test_network(library):
    "It has norms, they run, and none is folded wrongly"
    if not find_spec(LIBRARIES[library].package): pytest.skip(f'{library} is not installed')
    with quiet(): source = find_source(f'{library}:{networks[library]}', (64,64))
    if source.missing: pytest.skip(source.missing)
    model,xb = prepare(source.make, source.batches)
    assert norm_ops(model, *xb)
    res = trial(library, model, xb, 'fastfold', fold_fastfold)
    assert res.is_right or 'quantized' in res.failure, res

@pytest.mark.parametrize('library', networks)
def test_unknown(library, capsys):
    "A name that the library doesn't have is said to be wrong before anything is made"
    if not find_spec(LIBRARIES[library].package): pytest.skip(f'{library} is not installed')
    assert main(['zoo', f'{library}:resnet81x'])==2
    err = capsys.readouterr().err.splitlines()[-1]
    assert f"in {library} 'resnet81x" in err and ': try ' in err

def toy_source(name, size, seed):
    import toy_networks
    return Source(choose(name, vars(toy_networks), 'network in toy'), [random_batch((2,3,*size), seed=seed)])

@pytest.fixture
def toy(monkeypatch, tmp_path):
    "A library that was made up"
    monkeypatch.setitem(LIBRARIES, 'toy', Library('toy_networks', toy_source, 'toy-networks'))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [str(tmp_path), *sys.path])
    yield tmp_path/'toy_networks.py'
    sys.modules.pop('toy_networks', None)

pair = """from torch import nn
def pair(): return nn.Sequential(nn.Conv2d(3,4,3), nn.BatchNorm2d(4), nn.ReLU())"""

def test_fold(toy, capsys):
    toy.write_text(pair)
    assert main(['zoo', 'toy:pair'])==0
    assert '1 norms,   0 left' in capsys.readouterr().out

def test_missing(toy, capsys):
    "A library that isn't there is a line, whether it is one of many or the only one"
    assert main(['zoo', 'toy:pair', '--out', 'o'])==0
    assert capsys.readouterr().out=='toy:pair is left out: toy is not installed: pip install toy-networks\n'
    assert not toy.with_name('o').exists()
    assert main(['zoo', 'toy:pair', 'tabular_learner'])==0
    out = capsys.readouterr().out
    assert out.startswith('toy:pair is left out') and 'tabular_learner' in out

def test_broken(toy, capsys):
    "So is one that lacks another one"
    toy.write_text('import no_such_module')
    assert main(['zoo', 'toy:pair'])==0
    assert "toy can't be imported: ModuleNotFoundError: No module named 'no_such_module'" in capsys.readouterr().out

def test_names(toy, capsys):
    toy.write_text(pair)
    for name,says in (('toy:pear', "no network in toy 'pear': try pair"), ('tyo:pair', "no library 'tyo': try toy"),
            (':pair', "no library ''"), ('toy:', "no network in toy ''")):
        assert main(['zoo', name])==2
        assert says in capsys.readouterr().err

def test_limit(toy, tmp_path, capsys):
    "A list may say how many norms may be left in a network of a library"
    toy.write_text(pair + '\ndef alone(): return nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.ReLU())')
    (tmp_path/'list.json').write_text('{"toy:pair": {"left": 0}, "toy:alone": {"left": 0, "hw": [8,8]}}')
    assert main(['zoo', 'list.json'])==1
    assert 'toy:alone keeps 1 norms, which is more than 0' in capsys.readouterr().err
