"""Exits with 0 if a URL answers 200."""

import sys
import urllib.error
import urllib.request

try:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    sys.exit(opener.open(sys.argv[1], timeout=10).status != 200)
except (urllib.error.URLError, OSError):
    sys.exit(1)
