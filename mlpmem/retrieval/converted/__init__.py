"""Text out of files that are not plain text: web pages and PDFs.

converted bounds and starts worker, a process of its own per file; worker calls markup for a web
page and pypdf for a PDF.
It imports `errors` only, and worker nothing of mlpmem. Open converted.py first.
"""
