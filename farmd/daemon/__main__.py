# SPDX-License-Identifier: Apache-2.0
"""`python -m farmd.daemon` is `farmd`."""

from farmd.daemon.main import main

if __name__ == "__main__":
    main()
