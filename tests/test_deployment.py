"""The page on deployment, section by section, with the cells that need packages or time that notebooks don't ask for.
What is to come out is asserted in the cells"""
import json,os,re,shutil
from importlib.util import find_spec
from pathlib import Path
import pytest, torch

page = Path(__file__).resolve().parent.parent/'nbs/guide/deployment.ipynb'

def sections():
    "Title -> the source of each code cell; what comes before the first title is called ''"
    res,title = {'':[]},''
    for c in json.loads(page.read_text(encoding='utf-8'))['cells']:
        source = ''.join(c['source'])
        if c['cell_type']=='code': res[title].append(source)
        elif source.startswith('## '):
            title = source[3:].strip()
            res[title] = []
    return res

cells = sections()
titles = [o for o in cells if o]

def is_slow(source): return source.startswith('#| slow')

def missing(source):
    "Say what isn't installed that `source` needs, if anything is"
    packages = set(re.findall(r'^(?:from|import) (\w+)', source, flags=re.M))
    if 'torch.onnx' in source: packages.add('onnxscript')
    absent = [o for o in sorted(packages) if not find_spec(o)]
    if absent: return f'{", ".join(absent)} is not installed'
    if 'g++' in source and os.name=='nt': return 'the command is not one for Windows'
    compiler = 'cl' if os.name=='nt' else 'g++'
    compiles = 'torch.compile' in source or 'g++' in source
    return f'there is no compiler ({compiler})' if compiles and not shutil.which(compiler) else ''

@pytest.fixture(scope='module')
def page_run():
    "Function that runs a section; what others define before it is defined first"
    names,done,here = {},[],os.getcwd()
    def run(sources):
        for o in sources:
            exec(compile(o, str(page), 'exec'), names)
            done.append(o)
    def _run(title):
        before = [o for t in ['', *titles[:titles.index(title)]] for o in cells[t] if not is_slow(o)]
        run([o for o in before if o not in done])
        run(cells[title])
    with torch.random.fork_rng(): yield _run
    if Path(os.getcwd())!=Path(here): run(cells[titles[-1]][-1:]) # takes away what the page has made
    torch.set_grad_enabled(True)

def test_sections():
    "The last cell goes back to where the first one left, and each way out has code"
    assert all(cells.values()) and 'os.chdir(here)' in cells[titles[-1]][-1]

@pytest.mark.parametrize('title', titles)
@pytest.mark.filterwarnings('ignore')
def test_section(title, page_run):
    if why := missing('\n'.join(cells[title])): pytest.skip(why)
    page_run(title)
