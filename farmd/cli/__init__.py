# SPDX-License-Identifier: Apache-2.0
"""`farmctl`: asks a node's farmd over its local API and shows the answer. Imports nothing heavy before it must."""
