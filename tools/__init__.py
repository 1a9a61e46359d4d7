"""Programs of the checkout that are not installed with the package."""
