"""``gic test``: measures a set of weights on real files, beside other codecs (DESIGN 10)."""
