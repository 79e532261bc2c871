"""The report of a workdir: one page of HTML.

- ``page``: the page, section by section; page.html, page.css and page.js are its frame, look and behaviour.
- ``contents``: what the workdir holds; ``meanings``: its figures in words.
- ``charts``: plots as SVG; ``again``: the command that makes a result again.
"""
