import sys

from bench.failover.cli import main

sys.exit(main())
