# SPDX-License-Identifier: Apache-2.0
"""Pure values and pure functions that every other room builds on. Imports nothing of ours."""
