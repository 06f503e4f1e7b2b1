"""Every page of the documentation can be had without a network, and no link leads nowhere. A notebook can't teach this:
it is about all of them together"""
import os,re,subprocess,sys
from html.parser import HTMLParser
from urllib.parse import unquote,urlsplit
import pytest

class Page(HTMLParser):
    "The anchors of a page, where it links to, and what it loads"
    def __init__(self, path):
        super().__init__()
        self.anchors,self.links,self.loads,self.title = set(),[],[],''
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        d = dict(attrs)
        self.anchors |= {d[k] for k in ('id','name') if d.get(k)}
        if tag=='a' and 'href' in d: self.links.append(d['href'])
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
    pages = {re.sub(r'^\d+_', '', f.stem)+'.html' for f in (root/'nbs').rglob('*.ipynb')}
    assert all(pages<={urlsplit(o).path for o in p.links} for p in site.values())

def test_api_pages_open_with_an_example(site, root):
    "Before the first heading and the first entry"
    api = {re.sub(r'^\d+_', '', f.stem)+'.html' for f in (root/'nbs').rglob('[0-9]*.ipynb')}
    texts = {f.name: f.read_text(encoding='utf-8') for f in site if f.name in api}
    assert texts.keys()==api
    assert not [n for n,s in texts.items() if '<div class="highlight' not in re.split('<h[23]', s)[0]]

def test_readme_links(root):
    "Relative links of the README lead to files, and its anchors to headings"
    text = (root/'README.md').read_text(encoding='utf-8')
    titles = re.findall(r'^#+ (.*)$', text, flags=re.M)
    headings = {re.sub(r'[^\w\- ]', '', o).strip().lower().replace(' ', '-') for o in titles}
    links = [o for o in re.findall(r'\]\(([^)\s]+)\)', text) if urlsplit(o).scheme not in ('http','https')]
    assert links
    assert not [o for o in links if not (o[1:] in headings if o[0]=='#' else (root/urlsplit(o).path).exists())]
