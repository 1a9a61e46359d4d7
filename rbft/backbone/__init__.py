"""The vision-language model: loading, adapters, attention, and differences between families."""
