"""Comparisons with dreams, whose truth is known: is the guide calibrated, and is the model wrong?"""
