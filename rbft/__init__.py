"""Rationale-bootstrapped fine-tuning of vision-language models for video classification."""
