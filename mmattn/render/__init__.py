"""Drawings from numbers: renderers return marks, writers lower them to pixels, figures and pages."""
