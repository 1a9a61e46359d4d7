"""The vision-language model: loading, adapters, attention, and what tells families apart."""
