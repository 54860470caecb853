"""``python -m awesomeproxy`` is the ``awesomeproxy`` command."""

from awesomeproxy.control.cli import main

raise SystemExit(main())
