"""The fixed list of standard library modules whose docstrings form the embedded corpus.

A fixed list, rather than a walk of the standard library's folder, because importing arbitrary modules may
open windows, print text or fail on one platform. Every module below imports without side effects on
Linux, macOS and Windows with Python 3.11 to 3.14; one that a distribution left out is skipped.
Left out on purpose: ``pdb``, ``doctest`` and ``rlcompleter``, which load ``readline`` and so may write an
escape sequence to the terminal.
"""

from __future__ import annotations

_TOP_LEVEL = """
builtins abc argparse array ast asyncio base64 bdb binascii bisect bz2 calendar cmath cmd code codecs codeop
collections colorsys compileall configparser contextlib contextvars copy copyreg csv ctypes dataclasses
datetime decimal difflib dis email enum errno faulthandler filecmp fileinput fnmatch fractions
ftplib functools gc genericpath getopt getpass gettext glob graphlib gzip hashlib heapq hmac html http
imaplib inspect io ipaddress itertools json keyword linecache locale logging lzma mailbox marshal math
mimetypes mmap modulefinder multiprocessing netrc ntpath numbers opcode operator optparse os pathlib
pickle pickletools pkgutil platform plistlib poplib posixpath pprint profile pstats py_compile pyclbr pydoc
queue quopri random re reprlib runpy sched secrets select selectors shelve shlex shutil signal
smtplib socket socketserver sqlite3 ssl stat statistics string stringprep struct subprocess symtable sys
sysconfig tabnanny tarfile tempfile textwrap threading time timeit token tokenize trace traceback
tracemalloc types typing unicodedata unittest uuid venv warnings wave weakref webbrowser zipapp zipfile
zipimport zlib zoneinfo
"""

_SUBMODULES = """
asyncio.base_events asyncio.base_futures asyncio.base_subprocess asyncio.base_tasks asyncio.coroutines
asyncio.events asyncio.exceptions asyncio.futures asyncio.locks asyncio.protocols asyncio.queues
asyncio.runners asyncio.selector_events asyncio.sslproto asyncio.staggered asyncio.streams
asyncio.subprocess asyncio.taskgroups asyncio.tasks asyncio.threads asyncio.timeouts asyncio.transports
asyncio.trsock collections.abc concurrent.futures concurrent.futures.process concurrent.futures.thread
ctypes.util curses.ascii dbm.dumb email._header_value_parser email._parseaddr email._policybase
email.base64mime email.charset email.contentmanager email.encoders email.errors email.feedparser
email.generator email.header email.headerregistry email.iterators email.message email.mime.application
email.mime.audio email.mime.base email.mime.image email.mime.message email.mime.multipart
email.mime.nonmultipart email.mime.text email.parser email.policy email.quoprimime email.utils
encodings.aliases encodings.idna encodings.punycode encodings.utf_8 html.entities html.parser http.client
http.cookiejar http.cookies http.server importlib importlib.abc importlib.machinery importlib.metadata
importlib.resources importlib.resources.abc importlib.util json.decoder json.encoder json.scanner json.tool
logging.config logging.handlers multiprocessing.connection multiprocessing.context multiprocessing.dummy
multiprocessing.heap multiprocessing.managers multiprocessing.pool multiprocessing.process
multiprocessing.queues multiprocessing.reduction multiprocessing.shared_memory multiprocessing.sharedctypes
multiprocessing.spawn multiprocessing.synchronize multiprocessing.util sqlite3.dbapi2 sqlite3.dump
tomllib unittest.async_case unittest.case unittest.loader unittest.main unittest.mock unittest.result
unittest.runner unittest.signals unittest.suite unittest.util urllib.error urllib.parse urllib.request
urllib.response urllib.robotparser wsgiref.handlers wsgiref.headers wsgiref.simple_server wsgiref.types
wsgiref.util wsgiref.validate xml.dom xml.dom.domreg xml.dom.expatbuilder xml.dom.minicompat
xml.dom.minidom xml.dom.pulldom xml.etree.ElementInclude xml.etree.ElementPath xml.etree.ElementTree
xml.sax xml.sax.expatreader xml.sax.handler xml.sax.saxutils xml.sax.xmlreader xmlrpc.client xmlrpc.server
_collections_abc _pydecimal _pyio _strptime _threading_local _weakrefset
"""

STDLIB_MODULES: tuple[str, ...] = tuple(_TOP_LEVEL.split()) + tuple(_SUBMODULES.split())
