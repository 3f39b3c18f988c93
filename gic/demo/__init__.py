"""`gic demo`: the codec to try, on a page in the browser."""
