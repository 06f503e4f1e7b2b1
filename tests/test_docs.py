"""Every page of the documentation can be had without a network, and no link leads nowhere. A notebook can't teach this:
it is about all of them together"""
import base64,importlib.util,json,os,re,shutil,struct,subprocess,sys
from html import unescape
from html.parser import HTMLParser
from urllib.parse import unquote,urlsplit
import pytest
from fastcore.nbio import dict2nb, mk_cell

class Page(HTMLParser):
    "The anchors of a page, where it links to, and what it loads"
    def __init__(self, path):
        super().__init__()
        self.anchors,self.links,self.loads,self.images,self.title = set(),[],[],[],''
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        d = dict(attrs)
        self.anchors |= {d[k] for k in ('id','name') if d.get(k)}
        if tag=='a' and 'href' in d: self.links.append(d['href'])
        if tag=='img': self.images.append(d)
        self.loads += [d[k] for k in ('src','href') if tag!='a' and d.get(k)]

    def handle_data(self, data): self.title = self.title or data.strip()

@pytest.fixture(scope='module')
def site(copy_to, tmp_path_factory):
    "The pages of the documentation, by path"
    d = copy_to(tmp_path_factory.mktemp('docs')/'fastfold')
    env = {**os.environ, 'PYTHONPATH':str(d)}
    res = subprocess.run([sys.executable, 'tools/docs.py'], cwd=d, env=env, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT)
    assert res.returncode==0, res.stdout
    return {f: Page(f) for f in (d/'_docs').glob('*.html')}

def broken(link, page, site):
    "What is wrong with `link` on `page`, if anything is"
    o = urlsplit(link)
    if o.scheme in ('http','https','mailto','data'): return ''
    if o.scheme or link.startswith('/'): return f'{link} leads out of the pages'
    target = (page.parent/unquote(o.path)).resolve() if o.path else page
    if not target.is_file(): return f'{link} is no file'
    return f'{link} is no place on that page' if o.fragment and unquote(o.fragment) not in site[target].anchors else ''

def test_links(site):
    wrong = {}
    for f,p in site.items():
        if res := sorted({r for o in p.links+p.loads if (r := broken(o, f, site))}): wrong[f.name] = res
    assert not wrong

def test_offline(site):
    "Nothing is fetched to show a page: no script, no font, no style"
    assert not [(f.name, o) for f,p in site.items() for o in p.loads if urlsplit(o).scheme in ('http','https')]
    def prose(f): return re.sub('<pre>.*?</pre>', '', f.read_text(encoding='utf-8'), flags=re.S)
    assert not [f.name for f in site if re.search(r'\$\$|\\frac', prose(f))] # formulas are MathML

def test_every_notebook_is_linked(site, root):
    "From every page to every other"
    named = [re.sub(r'^\d+_', '', f.stem)+'.html' for f in (root/'nbs').rglob('*.ipynb')]
    pages = set(named)
    assert len(pages)==len(named), 'two notebooks have one name, and only one of them a page'
    assert all(pages<={urlsplit(o).path for o in p.links} for p in site.values())

def test_api_pages_open_with_an_example(site, root):
    "Before the first heading and the first entry"
    api = {re.sub(r'^\d+_', '', f.stem)+'.html' for f in (root/'nbs').rglob('[0-9]*.ipynb')}
    texts = {f.name: f.read_text(encoding='utf-8') for f in site if f.name in api}
    assert texts.keys()==api
    before_headings = {n: re.split('<h[23]', s.partition('<main>')[2])[0] for n,s in texts.items()}
    assert not [n for n,s in before_headings.items() if '<div class="highlight' not in s]

def test_formulas(site):
    "None shows what latex2mathml didn't understand"
    assert not [f.name for f in site if re.search('<mi>(&amp;|&)</mi>', f.read_text(encoding='utf-8'))]

def test_pictures_are_told(site):
    "Each says in words what it shows, and is no strip"
    def told(img): return img.get('alt') and 'No description' not in img['alt']
    assert not [f.name for f,p in site.items() if not all(map(told, p.images))]
    drawn = [(f.name, o['src'].partition('base64,')[2]) for f,p in site.items() for o in p.images]
    sizes = [(n, *struct.unpack('>II', base64.b64decode(o[:64])[16:24])) for n,o in drawn if o]
    assert sizes
    assert not [(n, w, h) for n,w,h in sizes if h*20<w]

def test_numbers_in_tables(site):
    "Large ones have their digits in groups, and what is counted has no fraction"
    bad = r'<td[^>]*>\s*(\d{5,}(\.\d+)?|[\d,]+,\d{3}\.\d+)\s*</td>'
    assert not {f.name: m[0] for f in site if (m := re.search(bad, f.read_text(encoding='utf-8')))}

def test_names_of_other_tools(site):
    "A class of another tool that is called as one of ours doesn't lead to ours"
    theirs = r"(fasterai|timm|mmcv|torchvision)(&#x27;s|'s)? <a [^>]*><code>\w+"
    assert not {f.name: m[0] for f in site if (m := re.search(theirs, f.read_text(encoding='utf-8')))}

def test_contents(site):
    "Guide and API stand apart, folded where there is little room, and only the part that is shown is open"
    for f in site:
        nav = re.search('<details class="nav">.*?</nav></details>', f.read_text(encoding='utf-8'), flags=re.S)[0]
        guide,api = re.split('<h2>API</h2>', nav)
        assert '<h2>Guide</h2>' in guide and 'merging.html' in guide and 'folder.html' not in guide
        opened = re.findall('<details open>.*?</details>', api, flags=re.S)
        assert len(opened)==('aria-current' in api and not re.search('aria-current', api.split('<details')[0]))
        assert all('aria-current' in o for o in opened)

@pytest.fixture(scope='module')
def docs(root):
    "The tool that renders the pages"
    spec = importlib.util.spec_from_file_location('docs', root/'tools/docs.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

def test_sections_without_a_result(docs):
    "They are left out: one whose `#| cuda` or `#| slow` cells have no stored output"
    told = [dict(output_type='stream', name='stdout', text='7 norms')]
    def code(src, outputs=()): return mk_cell(src, outputs=list(outputs))
    def text(src): return mk_cell(src, 'markdown')
    bare = [text('## Not recorded'), code('#| cuda\nprint(a)'), text('### More of it'), code('b')]
    full = [text('## Recorded'), code('#| slow\nc = 1'), code('#| slow\nprint(c)', told)]
    cells = [text('# Page'), code('1+1'), *bare, *full, text('## Always run'), code('d = 1')]
    nb = dict2nb(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5))
    shown = [c.source for c in docs.recorded(nb.cells)]
    assert not [o for o in shown if o in ('## Not recorded', '### More of it', 'b') or 'print(a)' in o]
    assert [o for o in shown if o[0]=='#' and o[1]!='|']==['# Page', '## Recorded', '## Always run']

def test_signature(docs):
    "A comment that has no room beside its parameter goes under it"
    short,long = 'a:int=1, # Of them', f'    b:int=1, # {"one word and another "*6}'
    assert docs.narrow(short)==short
    first,*rest = docs.narrow(long).splitlines()
    assert first=='    b:int=1,' and len(rest)==2 and all(len(o)<=100 and o.startswith('        # ') for o in rest)

measure = """<script>addEventListener('load', () => {
  const wide = [...document.querySelectorAll('table, pre, img, math')]
    .filter(o => o.getBoundingClientRect().right > innerWidth)
  const page = document.documentElement.scrollWidth > innerWidth ? ['page'] : []
  parent.postMessage([location.hash.slice(1), page.concat(wide.map(o => o.tagName.toLowerCase()))], '*') })</script>"""

def cut(pages, width, tmp_path):
    "What of each page has no room on a screen of `width` pixels, as Chromium lays it out"
    frames = []
    for f in pages:
        copy = f.with_name(f'measured-{f.name}')
        copy.write_text(f.read_text(encoding='utf-8') + measure, encoding='utf-8')
        frames.append(f'<iframe src="{copy.as_uri()}#{f.name}" style="width:{width}px; height:900px"></iframe>')
    note = 'res[e.data[0]] = e.data[1]; out.textContent = JSON.stringify(res)'
    listen = f'res = {{}}; addEventListener("message", e => {{ {note} }})'
    page = tmp_path/'all.html'
    page.write_text(f'<pre id="out"></pre><script>{listen}</script>{"".join(frames)}', encoding='utf-8')
    flags = '--headless --no-sandbox --disable-gpu --no-first-run --disable-background-networking --dump-dom'
    cmd = [chromium, *flags.split(), f'--user-data-dir={tmp_path/"user"}', '--virtual-time-budget=60000', page.as_uri()]
    dom = subprocess.run(cmd, capture_output=True, text=True, timeout=300).stdout
    for f in pages: f.with_name(f'measured-{f.name}').unlink()
    return json.loads(unescape(re.search('<pre id="out">(.*?)</pre>', dom, flags=re.S)[1]))

chromium = shutil.which('chromium') or shutil.which('google-chrome')
shown = 'index folder saved cli reasons merging benchmarks peers tutorial.pets cost questions'.split()

@pytest.mark.skipif(not chromium, reason='pages are laid out by Chromium, which is not installed')
@pytest.mark.parametrize('width', (1280, 390))
def test_nothing_is_cut(width, site, tmp_path):
    "No page is wider than the screen, and on a desktop no table or code is wider than its place"
    pages = [f for f in site if f.stem in shown]
    wide = cut(pages, width, tmp_path)
    assert wide.keys()=={f.name for f in pages}
    assert not [n for n,o in wide.items() if 'page' in o]
    if width==1280: assert not {n:o for n,o in wide.items() if o}

@pytest.mark.skipif(not chromium, reason='pages are laid out by Chromium, which is not installed')
def test_report_on_a_phone(tmp_path):
    "The page of a report isn't wider than a phone, and no cell of its tables is cut"
    from fastfold.core.refusals import reason
    from fastfold.report.rows import FoldReport, FoldRow, MergeRow
    name = 'features.denseblock1.denselayer1.a_long_name'
    rows = [FoldRow(name, 'BatchNorm2d', into=[name]), FoldRow(name, 'BatchNorm2d', why=reason('unused'))]
    sums = [MergeRow(name, 'Conv2d', [name]*6, multiplications=10**9, operations=3)]
    page = FoldReport(rows, 10**7, 10**7-1, sums=sums).to_html(tmp_path/'report.html')
    assert cut([page], 390, tmp_path)=={'report.html': []}

def test_readme_links(root):
    "Relative links of the README lead to files, and its anchors to headings"
    text = (root/'README.md').read_text(encoding='utf-8')
    titles = re.findall(r'^#+ (.*)$', text, flags=re.M)
    headings = {re.sub(r'[^\w\- ]', '', o).strip().lower().replace(' ', '-') for o in titles}
    links = [o for o in re.findall(r'\]\(([^)\s]+)\)', text) if urlsplit(o).scheme not in ('http','https')]
    assert links
    assert not [o for o in links if not (o[1:] in headings if o[0]=='#' else (root/urlsplit(o).path).exists())]
