"""Attacks on what a federation shows, and tests of what protects it.

An attack that fails proves little unless the same attack succeeds with the protection off; so each is
written to be run both ways.

=================  ====================================================================================
module             what
=================  ====================================================================================
``inversion``      rows out of the change of a dense layer, in closed form
``membership``     was this row trained on? by its loss, and by likelihood ratio (LiRA)
``one_run``        a lower bound on epsilon from one training run
``noise``          is the noise that leaves a site the noise that was declared?
``hostile``        what a malicious client may send instead of its update
=================  ====================================================================================

The optimised gradient inversion needs torch: :mod:`atoll.models.torch.attacks`.
"""
