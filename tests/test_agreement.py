"""Where folded models are compared with the original, both agree: no place is taken from a stretch in which they are
meant to differ"""
import pytest, torch
from torch import nn
from torchvision import models
from fastfold.lab.agreement import agreement, draw_agreement
from fastfold.folder import BN_Folder
from random_nets import live
from test_merge import Block, conv, images, repvgg

@pytest.fixture(autouse=True)
def seed(): torch.manual_seed(0)

def agrees(model, x, least, **options):
    live(model)
    folder = BN_Folder(**options)
    df = agreement(model, folder.fold(model, x), folder.report, x)
    assert (df.difference<1e-9).all(), df[df.difference>1e-9] # a gate that is almost closed makes much of rounding
    assert (df.rounding==0).all() and df.layer.iloc[-1]=='the model' and len(df)>=least
    return list(df.layer)

@pytest.mark.parametrize('name,least', [
    ('densenet121', 130), ('googlenet', 70), ('mobilenet_v3_small', 60), ('shufflenet_v2_x0_5', 60)])
def test_torchvision(name, least):
    agrees(getattr(models, name)(weights=None), torch.randn(2, 3, 64, 64, dtype=torch.float64), least)

@pytest.mark.parametrize('name,least,options', [
    ('efficientnet_b0', 100, {}), ('mobileone_s0', 20, dict(merge=True)), ('repvit_m0_9', 60, dict(merge=True)),
    ('convnext_atto', 60, dict(layer_scale=True)), ('levit_128s', 50, {})])
def test_timm(name, least, options):
    timm = pytest.importorskip('timm')
    agrees(timm.create_model(name), torch.randn(1, 3, 224, 224, dtype=torch.float64), least, **options)

def test_places():
    assert agrees(nn.Sequential(repvgg(), nn.ReLU()), images, 2, merge=True)==['0', '1', 'the model']
    shared = nn.ReLU()
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), shared, conv(), shared)
    assert agrees(model, images, 2)==['1', '2 (1)', '3', '2 (2)', 'the model']
    twice = Block(lambda m,x: dict(a=m.conv(x).argmax(), b=m.conv(x)), conv=conv())
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), twice)
    assert agrees(model, images, 2)==['1', '2.conv (1)', '2.conv (2)', 'the model']

def test_nothing_folded():
    model,folder = nn.Sequential(nn.ReLU()),BN_Folder()
    folder.fold(model, images)
    df = agreement(model, model, folder.report, images.float())
    assert df.layer.tolist()==['0', 'the model'] and not df.difference.any()
    draw_agreement(df)
