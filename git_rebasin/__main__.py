"""`python -m git_rebasin` is the command `git-rebasin`."""

import sys

from git_rebasin.cli.parser import main

sys.exit(main())
