"""One page about finished runs, made without torch from the files that they leave."""
