# SPDX-License-Identifier: Apache-2.0
"""`python -m farmd.cli` is `farmctl`."""

from farmd.cli.main import main

if __name__ == "__main__":
    main()
