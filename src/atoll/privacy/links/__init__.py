"""Links of the chain an update passes on its way out; see :mod:`atoll.core.chain`.

==============  ============================================  ========================================
link            client half                                   server half
==============  ============================================  ========================================
``clip``        scales the update to a norm of C at most      moves C, where it is adaptive
``share``       weighs vectors with min(w, cap) / cap         divides by the number of updates
``quantise``    numbers, weight and metrics become integers   integers become numbers again
``noise``       adds its part of the noise to the integers    adds noise to the sums
``mask``        nothing: masks are added outside job code     nothing
``encrypt``     nothing: it happens outside job code          nothing
==============  ============================================  ========================================

Order: clip, share, quantise, noise, mask. Central noise is added to numbers, so it stands before
``quantise``; noise of the sites is added to integers, so it stands behind it.
"""
