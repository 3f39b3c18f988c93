"""``gic test``: how good a set of weights is, on real files, beside what people would use instead (DESIGN 10)."""
