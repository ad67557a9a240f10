"""Asynchronous training (Dean et al. 2012, Downpour): a server keeps the weights, workers come and go.

``server`` is the run's own process: it leads, and each of its steps takes up what a worker has pushed. ``worker``
computes gradients of the steps that the server deals out (``dealing``). They speak over links that die alone
(``links``), which ``listening`` opens. ``rules`` is what is done with a gradient that comes late, ``applying`` does it,
in the server as in ``replay``, which repeats in one process the order that ``trace`` has recorded. With several servers
``leading`` is the run's process, and each ``shard`` keeps a part of the weights, as ``parts`` divides them; ``calling``
is how workers and shards speak with the run's process. ``supervising`` starts the processes on this machine, and starts
again the one that died.
"""
