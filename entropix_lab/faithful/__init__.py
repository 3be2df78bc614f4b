"""The original entropix (github.com/xjdr-alt/entropix), bug for bug. Not imported with the package."""
