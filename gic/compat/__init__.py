"""gic behind the interfaces of other packages."""
