# SPDX-License-Identifier: Apache-2.0
"""Figures, each from one command: a table for people and JSON for machines."""
