"""The service's gunicorn.conf.py for another worker class, which BENCH_WORKER names.

That file patches the standard library for gevent, or does not, as its own worker class needs. With
the patches gthread would run on greenlets in place of threads.
"""

import os
import runpy

from gevent import monkey

if os.environ["BENCH_WORKER"] == "gevent":
    monkey.patch_all()
else:
    monkey.patch_all = lambda: None

globals().update(runpy.run_path("gunicorn.conf.py"))
