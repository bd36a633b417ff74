"""The demo world: `world` draws pictures of coloured shapes and describes them, `grammar` makes sentences of descriptions,
`languages` has the words, a file for each language.
"""
