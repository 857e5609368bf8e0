"""The claims of the paper as data: rules that turn tables into findings, verdicts from these, and all prose apart."""
