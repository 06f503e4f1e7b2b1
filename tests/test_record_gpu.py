"The recorder of GPU results, rehearsed without one: what it runs, what it stores, and what it leaves alone"
import json,subprocess,sys
import pytest,torch

def cell(src, outputs=(), kind='code'):
    res = dict(cell_type=kind, id=f'{abs(hash(src))%16**8:08x}', metadata={}, source=src.splitlines(keepends=True))
    return res | (dict(outputs=list(outputs), execution_count=None) if kind=='code' else {})

def old(text): return [dict(output_type='stream', name='stdout', text=[text])]

named = "#| cuda\nprint(torch.cuda.get_device_name(), torch.__version__)\nx = torch.ones(2).to('cuda')"
cells = [cell('# A title', kind='markdown'), cell('import torch\nn = 3\nprint("run again")', old('as it was\n')),
    cell('#| notest\nraise SystemExit', old('from elsewhere\n')), cell('#| slow\nn += 1'), cell('#| eval: false\n1/0'),
    cell(named, old('another GPU\n')), cell('"nothing to see"', old('kept\n')),
    cell('#| cuda\nimport warnings\nwarnings.warn("in /some/folder")\nx.cuda().sum()*n'),
    cell('raise ValueError("behind the last recorded cell")')]

@pytest.fixture
def record(root, tmp_path):
    def _record(cells, *args):
        (tmp_path/'out').mkdir(exist_ok=True)
        nb = dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)
        (tmp_path/'nb.ipynb').write_text(json.dumps(nb, indent=1, sort_keys=True)+'\n')
        cmd = [sys.executable, root/'tools/record_gpu.py', tmp_path/'nb.ipynb', *args]
        res = subprocess.run(cmd, text=True, capture_output=True)
        return res,[json.loads(f.read_text()) for f in (tmp_path/'out').iterdir()]
    return _record

def test_recorded(record, tmp_path):
    "Only cells that are marked get outputs, and these are cleaned; no other byte changes"
    res,(nb,) = record(cells, '--device', 'cpu', '--out', tmp_path/'out')
    assert res.returncode==0 and '2 cells recorded' in res.stdout and '/some/folder' in res.stderr
    recorded = [o for c,o in zip(cells, nb['cells']) if c!=o]
    assert [''.join(o['source'])[:7] for o in recorded]==['#| cuda']*2
    assert torch.__version__ in recorded[0]['outputs'][0]['text'][0] and 'another GPU' not in str(nb)
    out, = recorded[1]['outputs']
    assert out['data']['text/plain']==['tensor(8.)'] and out['execution_count'] is None
    assert [{**c, 'outputs':0} for c in cells]==[{**o, 'outputs':0} for o in nb['cells']]

@pytest.mark.parametrize('wrong,says', [
    (cells[:5], 'has no cell with `#| cuda`'), (cells[:2]+[cell('#| cuda\n1/0')], 'so nothing is stored'),
    (cells[:2]+[cell('#| cuda\nn')], "print the GPU's name")], ids=['none','fails','nameless'])
def test_nothing_stored(wrong, says, record, tmp_path):
    res,found = record(wrong, '--device', 'cpu', '--out', tmp_path/'out')
    assert res.returncode==1 and says in res.stderr and not found

def test_rehearsal_is_no_recording(record, tmp_path):
    for args in (), ('--out', tmp_path):
        res,_ = record(cells, '--device', 'cpu', *args)
        assert res.returncode==2 and 'needs --out' in res.stderr

@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_no_gpu(record):
    res,_ = record(cells)
    assert res.returncode==1 and 'finds no CUDA GPU' in res.stderr
