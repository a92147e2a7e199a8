"""A login on its way from one machine to another: export, import, push.

Law: the standard library and Python 3.9 are enough, and nothing else of this package is imported, because the
scripts run without an install, and `push` runs these modules on the server from memory.
"""
