"""What a run would take: tokens, arithmetic, memory, time."""
