"""Fixtures for what the login survives; the real Hermes is that of tests/hermes."""

from __future__ import annotations

from tests.hermes.conftest import _xai, certificates, hermes_bin, rig

__all__ = ["_xai", "certificates", "hermes_bin", "rig"]
