"""Placement files of serving engines: written from a Plan, and read back to the same one."""

from moecast.placement.engines.files import ENGINES, EngineFormat, engine_path, find_engine, read_any, write_engine_file

__all__ = ["ENGINES", "EngineFormat", "engine_path", "find_engine", "read_any", "write_engine_file"]
