"""Speed and size of Atoll, against a plain loop; and published results run again (``targets``)."""
