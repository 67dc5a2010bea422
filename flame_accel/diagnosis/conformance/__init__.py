"""Laws that every model of fla should keep, checked on tiny models, and the known exceptions."""
